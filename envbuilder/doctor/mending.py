"""Carrying a mend out so that it can be taken back: nothing is deleted, only set aside, by a journal.

The journal is written before the first step: a mend that was killed halfway can be undone as well. What is set aside
stays on the same disk, beside what it belonged to.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from envbuilder.doctor.commands import pastable
from envbuilder.errors import EnvbuilderError, StepError
from envbuilder.facts import redact
from envbuilder.facts.site_packages import record_rows
from envbuilder.files import storage_errors, write_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from envbuilder.console import Console

SCHEMA = "envbuilder/mend/1"
_ASIDE = ".envbuilder-set-aside"


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Another program puts a distribution in the place of `name` in `site`; `exchange` runs it. It may raise EnvbuilderError."""

    site: Path
    name: str
    exchange: Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What is done for a finding.

    `paths` are set aside; they lie below `home`, where the folder of things set aside is made. `links` (place, goal)
    are made then, where a path was set aside or nothing was.
    """

    id: str
    what: str
    home: Path
    paths: tuple[Path, ...] = ()
    links: tuple[tuple[Path, Path], ...] = ()
    exchange: Exchange | None = None


def state_folder() -> Path:
    """Return where journals are kept."""
    if given := os.environ.get("ENVBUILDER_STATE"):
        return Path(given) / "doctor"
    import platformdirs  # noqa: PLC0415 - only where something is mended

    return platformdirs.user_state_path("envbuilder") / "doctor"


def owned(site: Path, info: Path) -> tuple[list[Path], bool]:
    """Return what only this distribution owns, as few and as large pieces as can be, and whether it shares files.

    A RECORD may say anything: what does not lie in site-packages (a link may lead out of it), or belongs to others too,
    is left where it is.
    """
    others = {path for other in site.glob("*.dist-info") if other != info for path, _ in record_rows(other)}
    folders = {path[:end] for path in others for end in _ends(path)}
    pieces: set[str] = set()
    shares = False
    for path, _ in record_rows(info):
        if path.startswith("/") or ".." in path.split("/") or "\0" in path:
            continue
        if path in others:
            shares = True
        else:
            pieces.add(next((path[:end] for end in _ends(path) if path[:end] not in folders), path))
    home = site.resolve()
    inside = [site / piece for piece in sorted(pieces - {info.name}) if (site / piece).parent.resolve().is_relative_to(home)]
    return [*inside, info], shares


def _ends(path: str) -> list[int]:
    return [place for place, sign in enumerate(path) if sign == "/"]


def carry_out(repairs: Sequence[Repair], console: Console) -> Path:
    """Write the journal, then do it. Returns the journal's path. Raises StorageError; an exchange that fails is said."""
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S%f")
    moves = _asides(stamp, [(repair.home, path) for repair in repairs for path in repair.paths])
    links = [link for repair in repairs for link in repair.links]
    exchanges = [(repair, repair.exchange) for repair in repairs if repair.exchange]
    copies = {
        str(each.site): _asides(f"{stamp}-kept", [(repair.home, path) for path in _of(each.site, each.name)]) for repair, each in exchanges
    }
    journal = state_folder() / f"{stamp}.json"
    document = {
        "schema": SCHEMA,
        "undone": False,
        "repairs": [repair.id for repair in repairs],
        "moves": _texts(moves),
        "links": _texts(links),
        "exchanges": [{"site": str(each.site), "name": each.name, "kept": _texts(copies[str(each.site)])} for _, each in exchanges],
    }
    write_json(journal, document)
    for source, goal in moves:
        _move(source, goal)
    for place, goal in links:
        with storage_errors(place):
            place.symlink_to(goal)
    for repair, each in exchanges:
        for source, goal in copies[str(each.site)]:
            _copy(source, goal)
        try:
            each.exchange()
        except EnvbuilderError as error:
            console.line(f"{repair.id} could not be mended: {redact.text(error.what)}")
            console.error(error)
    return journal


def _asides(stamp: str, wanted: Iterable[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    return [(path, home / _ASIDE / stamp / f"{number}-{path.name}") for number, (home, path) in enumerate(wanted)]


def _texts(pairs: Iterable[tuple[Path, Path]]) -> list[list[str]]:
    return [[str(first), str(second)] for first, second in pairs]


def _paths(pairs: Iterable[Any]) -> list[tuple[Path, Path]]:
    return [(Path(first), Path(second)) for first, second in pairs]


def _move(source: Path, goal: Path) -> None:
    with storage_errors(source):
        goal.parent.mkdir(parents=True, exist_ok=True)
        source.rename(goal)


def _copy(source: Path, goal: Path) -> None:
    """Keep a file or a folder under a second name: hard links, so that it takes no space."""
    with storage_errors(goal):
        goal.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir() and not source.is_symlink():
            shutil.copytree(source, goal, symlinks=True, copy_function=os.link)
        else:
            os.link(source, goal, follow_symlinks=False)


def _of(site: Path, name: str) -> list[Path]:
    """Return what the distribution of that name owns and is there, [] if it is not installed."""
    infos = sorted(site.glob(f"{name.replace('-', '_')}-*.dist-info"))
    return [path for info in infos for path in owned(site, info)[0] if there(path)]


def there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def undo_last(console: Console) -> int:
    """Take the last mend back. What stands at an old place by now is never overwritten. Raises StepError."""
    for journal in sorted(state_folder().glob("*.json"), reverse=True):
        try:
            document = json.loads(journal.read_bytes())
            moves, links = _paths(document["moves"]), _paths(document.get("links", []))
            exchanges = [(Path(each["site"]), str(each["name"]), _paths(each["kept"])) for each in document.get("exchanges", [])]
            undone = document["undone"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if not undone:
            _take_back(moves, links, exchanges)
            write_json(journal, {**document, "undone": True})
            console.line(f"taken back: {', '.join(document['repairs'])}")
            return 0
    console.line("there is nothing to take back")
    return 0


def _take_back(
    moves: Sequence[tuple[Path, Path]], links: Sequence[tuple[Path, Path]], exchanges: Sequence[tuple[Path, str, list[tuple[Path, Path]]]]
) -> None:
    ours = {place for place, goal in links if place.is_symlink() and place.readlink() == goal}
    blocked = [source for source, goal in moves if there(goal) and there(source) and source not in ours]
    if blocked:
        raise StepError(
            f"cannot put {redact.text(str(blocked[0]))} back",
            why="Something else stands there by now.",
            next=f"Move it away, then run `{pastable('envbuilder doctor --undo')}` again.",
        )
    for site, name, kept in reversed(exchanges):
        _exchange_back(site, name, kept)
    for place in ours:
        with storage_errors(place):
            place.unlink()
    for source, goal in reversed(moves):
        if there(goal):  # a move that was planned and not made has nothing to take back
            _move(goal, source)


def _exchange_back(site: Path, name: str, kept: Sequence[tuple[Path, Path]]) -> None:
    """Put the distribution that was kept in the place of the one that stands there now, which is set aside in turn."""
    whole = [(path, copy) for path, copy in kept if there(copy)]
    if not whole or len(whole) < len(kept):
        return  # it was killed while it made the copies: nothing had been exchanged
    folder = whole[0][1].parent
    for path in sorted({*_of(site, name), *(path for path, _ in kept)}):
        if there(path):
            _move(path, folder.with_name(f"{folder.name}-replaced") / path.relative_to(site))
    for path, copy in whole:
        _move(copy, path)
