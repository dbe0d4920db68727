"""What can be mended without its owner: which findings, how, and only what `mending` can take back.

Nothing here asks for root or touches the system; for all else there are the commands of the findings.
"""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path

from envbuilder.doctor.commands import pastable
from envbuilder.doctor.mending import Exchange, Repair, carry_out, owned, there
from envbuilder.doctor.model import Status
from envbuilder.facts import redact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envbuilder.console import Console
    from envbuilder.doctor.model import Examination
    from envbuilder.facts.model import Environment, Snapshot

    Align = Callable[[Path], object]

_PTXAS_RELEASE = (12, 9)  # the first that knows sm_121a
_NEEDS_ANOTHER_TORCH = ("EB-TORCH-001", "EB-TORCH-010", "EB-ABI-001", "EB-ABI-002")
_OTHER_CUDA = {"EB-PKG-001": r"nvidia-.+-cu(\d\d)", "EB-PKG-002": r"nixl-cu(\d\d)"}


def plan(snapshot: Snapshot, result: Examination, align: Align | None = None) -> list[Repair]:
    """Return what can be mended safely, of the faults that are there. `align` gives an environment the torch that it needs."""
    faults = {finding.check.id for finding in result.findings if finding.status in {Status.FAIL, Status.WARN}}
    repairs = list(_models(snapshot)) if "EB-CKPT-001" in faults else []
    env = snapshot.environment
    if env is not None and env.valid:
        repairs += _environment(snapshot, env, faults)
        # Without extensions nothing says which torch is meant, and `align` would leave it as it is.
        if align is not None and env.extensions and (causes := [one for one in _NEEDS_ANOTHER_TORCH if one in faults]):
            repairs += _another_torch(env, causes[0], align)
    return [repair for repair in repairs if repair.paths or repair.exchange]


def _environment(snapshot: Snapshot, env: Environment, faults: set[str]) -> Iterator[Repair]:
    home = Path(env.path)
    if "EB-ENV-006" in faults:
        found = tuple(path for site in env.site_packages for name in env.leftovers if there(path := Path(site) / name))
        yield Repair(id="EB-ENV-006", what="set aside what pip left half done", home=home, paths=found)
    if "EB-FI-001" in faults:
        versions = {entry.name: entry.version.partition("+")[0] for entry in env.distributions}
        wrong = [name for name in ("flashinfer-cubin", "flashinfer-jit-cache") if versions.get(name) != versions.get("flashinfer-python")]
        yield from _without(env, "EB-FI-001", wrong)
    if "EB-FI-002" in faults and env.jit_cache:
        cache = _cache_of(Path(env.jit_cache[0].path))
        if cache is not None and there(cache):
            what = "set FlashInfer's kept kernels aside; it compiles new ones"
            yield Repair(id="EB-FI-002", what=what, home=cache.parent, paths=(cache,))
    for fault, family in _OTHER_CUDA.items():
        if fault in faults:
            yield from _without(env, fault, _of_another_cuda(env, family))
    for fault, name in (("EB-TRI-001", "ptxas"), ("EB-TRI-002", "ptxas-blackwell")):
        # Where a variable names an old one, replacing Triton's own changes nothing.
        if fault in faults and not (
            snapshot.compilers and f"TRITON_{name.replace('-', '_').upper()}_PATH" in snapshot.compilers.ptxas_releases
        ):
            yield from _other_ptxas(snapshot, env, fault, name)


def _cache_of(library: Path) -> Path | None:
    return next((parent for parent in library.parents if parent.name == "flashinfer" and parent.parent.name == ".cache"), None)


def _without(env: Environment, id: str, names: list[str]) -> Iterator[Repair]:
    """Take distributions out that share no file: of one that does, the other's would go with it."""
    for name in names:
        for site in map(Path, env.site_packages):
            for info in sorted(site.glob(f"{name.replace('-', '_')}-*.dist-info")):
                paths, shares = owned(site, info)
                if not shares or id == "EB-FI-001":
                    what = f"take {name} out of the environment"
                    yield Repair(id=id, what=what, home=Path(env.path), paths=tuple(path for path in paths if there(path)))


def _of_another_cuda(env: Environment, family: str) -> list[str]:
    """Return the distributions built for another CUDA major than torch that nothing in the environment asks for."""
    own = env.torch.cuda.partition(".")[0] if env.torch else ""
    wanted = {
        re.sub(r"[-_.]+", "-", match[0]).lower()
        for entry in env.distributions
        for line in entry.requires
        if (match := re.match(r"[\w.-]+", line))
    }
    found = ((entry.name, re.fullmatch(family, entry.name)) for entry in env.distributions)
    return [name for name, match in found if match and own and match[1] != own and name not in wanted]


def _other_ptxas(snapshot: Snapshot, env: Environment, id: str, name: str) -> Iterator[Repair]:
    """Put a toolkit's assembler in the place of Triton's, which does not know this GPU."""
    programs = [
        (release, Path(toolkit.path) / "bin/ptxas")
        for toolkit in snapshot.toolkits or ()
        if (release := tuple(int(part) for part in toolkit.release.split(".") if part.isdecimal())) >= _PTXAS_RELEASE
    ]
    goal = next((path for _, path in sorted(programs, reverse=True) if path.is_file()), None)
    for site in map(Path, env.site_packages):
        place = site / "triton/backends/nvidia/bin" / name
        if goal is not None and there(place):
            what = f"put {goal} in the place of Triton's own {name}"
            yield Repair(id=id, what=what, home=Path(env.path), paths=(place,), links=((place, goal),))


def _models(snapshot: Snapshot) -> Iterator[Repair]:
    """Set broken files of Hugging Face's cache aside: link and blob, or its next download would take the blob for whole."""
    for model in snapshot.checkpoints or ():
        home = Path(model.path).parent.parent
        if not model.path or model.downloading or not home.name.startswith("models--"):
            continue
        paths = []
        for name in (text.partition(": ")[0] for text in model.broken):
            link = Path(model.path) / name
            blob = link.resolve()
            paths += [path for path in dict.fromkeys((link, blob)) if there(path) and path.is_relative_to(home)]
        if paths:
            what = f"set broken files of {model.name} aside; the next download fetches them again"
            yield Repair(id="EB-CKPT-001", what=what, home=home, paths=tuple(paths))


def _another_torch(env: Environment, id: str, align: Align) -> Iterator[Repair]:
    if len(env.site_packages) == 1 and any(entry.name == "torch" for entry in env.distributions):
        what = "give it the torch that its extensions need (envbuilder align; it downloads up to 1 GB)"
        exchange = Exchange(site=Path(env.site_packages[0]), name="torch", exchange=partial(align, Path(env.path)))
        yield Repair(id=id, what=what, home=Path(env.path), exchange=exchange)


def mend(
    snapshot: Snapshot, result: Examination, console: Console, *, yes: bool, again: Callable[[], Examination], align: Align | None = None
) -> Examination:
    """Show the plan, ask, carry it out, and examine again. Returns the last examination."""
    repairs = plan(snapshot, result, align)
    if not repairs:
        console.line("--fix: nothing here can be mended without you; the findings name the commands.")
        return result
    console.line(f"--fix would do this (nothing is deleted, `{pastable('envbuilder doctor --undo')}` takes it back):")
    for repair in repairs:
        console.line(f"  {repair.id}  {redact.text(repair.what)}")
        for path in repair.paths[:6]:
            console.line(f"      {redact.text(str(path))}")
        if len(repair.paths) > 6:
            console.line(f"      and {len(repair.paths) - 6} more")
    if not (yes or _agreed(console)):
        console.line("--fix: nothing was done.")
        return result
    journal = carry_out(repairs, console)
    console.line(f"done; journal: {redact.text(str(journal))}")
    return again()


def _agreed(console: Console) -> bool:
    if not sys.stdin.isatty():
        console.line("Standard input is no terminal: say --yes to go ahead.")
        return False
    print("Go ahead? [y/N] ", end="", file=console.stream, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
