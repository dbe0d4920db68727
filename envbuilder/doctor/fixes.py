"""Mending what is safe to mend: nothing is deleted, only set aside on the same disk, by a journal that takes it back.

The journal is written before the first move: a mend that was killed halfway can be undone as well. Nothing here asks
for root, installs anything or touches the system; for all else there are the commands of the findings.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from envbuilder.doctor.model import Status
from envbuilder.errors import StepError
from envbuilder.facts import redact
from envbuilder.files import storage_errors, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from envbuilder.console import Console
    from envbuilder.doctor.model import Examination
    from envbuilder.facts.model import Environment, Snapshot

SCHEMA = "envbuilder/mend/1"
_ASIDE = ".envbuilder-set-aside"
_RECORD_LINE = re.compile(r'^"?([^",]+(?:,[^",]+)*?)"?,[^,]*,\d*$', re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What is set aside for a finding. `paths` lie below `home`, where the folder of things set aside is made."""

    id: str
    what: str
    home: Path
    paths: tuple[Path, ...]


def plan(snapshot: Snapshot, result: Examination) -> list[Repair]:
    """Return what can be mended safely, of the faults that are there."""
    faults = {finding.check.id for finding in result.findings if finding.status in {Status.FAIL, Status.WARN}}
    env = snapshot.environment
    repairs: list[Repair] = []
    if env is not None and env.valid:
        home = Path(env.path)
        if "EB-ENV-006" in faults:
            found = [Path(site) / name for site in env.site_packages for name in env.leftovers]
            repairs.append(Repair(id="EB-ENV-006", what="set aside what pip left half done", home=home, paths=_present(found)))
        if "EB-FI-001" in faults:
            repairs += [
                Repair(id="EB-FI-001", what=f"take {name} out of the environment", home=home, paths=paths) for name, paths in _kernels(env)
            ]
        if "EB-FI-002" in faults and env.jit_cache:
            cache = _cache_of(Path(env.jit_cache[0].path))
            if cache is not None:
                what = "set FlashInfer's kept kernels aside; it compiles new ones"
                repairs.append(Repair(id="EB-FI-002", what=what, home=cache.parent, paths=_present([cache])))
    return [repair for repair in repairs if repair.paths]


def _present(paths: Sequence[Path]) -> tuple[Path, ...]:
    return tuple(path for path in paths if path.exists() or path.is_symlink())


def _cache_of(library: Path) -> Path | None:
    return next((parent for parent in library.parents if parent.name == "flashinfer" and parent.parent.name == ".cache"), None)


def _kernels(env: Environment) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """Yield the FlashInfer kernel packages whose version is not flashinfer-python's, with what they own."""
    versions = {entry.name: entry.version.partition("+")[0] for entry in env.distributions}
    for name in ("flashinfer-cubin", "flashinfer-jit-cache"):
        if name in versions and versions[name] != versions.get("flashinfer-python"):
            for site in map(Path, env.site_packages):
                info = next(iter(site.glob(f"{name.replace('-', '_')}-*.dist-info")), None)
                if info is not None:
                    yield name, _present(_owned(site, info))


def _owned(site: Path, info: Path) -> list[Path]:
    """Return the top folders and files that only this distribution owns, and its metadata, last.

    A RECORD may say anything: what does not lie in site-packages, or belongs to others too, is left where it is.
    """
    record = (info / "RECORD").read_text(encoding="utf-8", errors="replace") if (info / "RECORD").is_file() else ""
    tops = {path.split("/")[0] for path in _RECORD_LINE.findall(record) if not path.startswith(("/", "..")) and ".." not in path.split("/")}
    others = {
        other: (other / "RECORD").read_text(encoding="utf-8", errors="replace")
        for other in site.glob("*.dist-info")
        if other != info and (other / "RECORD").is_file()
    }
    own = [
        top
        for top in sorted(tops)
        if top != info.name and not any(re.search(rf"^{re.escape(top)}[/,]", text, re.MULTILINE) for text in others.values())
    ]
    return [*(site / top for top in own), info]


def state_folder() -> Path:
    """Return where journals are kept."""
    if given := os.environ.get("ENVBUILDER_STATE"):
        return Path(given) / "doctor"
    import platformdirs  # noqa: PLC0415 - only where something is mended

    return platformdirs.user_state_path("envbuilder") / "doctor"


def mend(snapshot: Snapshot, result: Examination, console: Console, *, yes: bool, again: Callable[[], Examination]) -> Examination:
    """Show the plan, ask, carry it out, and examine again. Returns the last examination."""
    repairs = plan(snapshot, result)
    if not repairs:
        console.line("--fix: nothing here can be mended without you; the findings name the commands.")
        return result
    console.line("--fix would do this (nothing is deleted, `envbuilder doctor --undo` takes it back):")
    for repair in repairs:
        console.line(f"  {repair.id}  {repair.what}")
        for path in repair.paths[:6]:
            console.line(f"      {redact.text(str(path))}")
    if not (yes or _agreed(console)):
        console.line("--fix: nothing was done.")
        return result
    journal = carry_out(repairs)
    console.line(f"done; journal: {redact.text(str(journal))}")
    return again()


def _agreed(console: Console) -> bool:
    if not sys.stdin.isatty():
        console.line("Standard input is no terminal: say --yes to go ahead.")
        return False
    print("Go ahead? [y/N] ", end="", file=console.stream, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def carry_out(repairs: Sequence[Repair]) -> Path:
    """Write the journal, then move. Returns the journal's path. Raises StorageError."""
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S%f")
    moves = [
        (path, repair.home / _ASIDE / stamp / f"{number}-{path.name}")
        for number, (repair, path) in enumerate((repair, path) for repair in repairs for path in repair.paths)
    ]
    journal = state_folder() / f"{stamp}.json"
    document = {
        "schema": SCHEMA,
        "undone": False,
        "repairs": [repair.id for repair in repairs],
        "moves": [[str(a), str(b)] for a, b in moves],
    }
    write_json(journal, document)
    for source, goal in moves:
        with storage_errors(source):
            goal.parent.mkdir(parents=True, exist_ok=True)
            source.rename(goal)
    return journal


def undo_last(console: Console) -> int:
    """Take the last mend back. What stands at an old place by now is never overwritten. Raises StepError."""
    for journal in sorted(state_folder().glob("*.json"), reverse=True):
        try:
            document = json.loads(journal.read_bytes())
            moves = [(Path(a), Path(b)) for a, b in document["moves"]]
            undone = document["undone"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if not undone:
            _take_back(moves)
            write_json(journal, {**document, "undone": True})
            console.line(f"taken back: {len(moves)} moves of {', '.join(document['repairs'])}")
            return 0
    console.line("there is nothing to take back")
    return 0


def _take_back(moves: Sequence[tuple[Path, Path]]) -> None:
    blocked = [source for source, goal in moves if goal.exists() and source.exists()]
    if blocked:
        raise StepError(
            f"cannot put {redact.text(str(blocked[0]))} back",
            why="Something else stands there by now.",
            next="Move it away, then run `envbuilder doctor --undo` again.",
        )
    for source, goal in reversed(moves):
        # A move that was planned and not made has nothing to take back.
        if goal.exists() or goal.is_symlink():
            with storage_errors(source):
                source.parent.mkdir(parents=True, exist_ok=True)
                goal.rename(source)
