"""What an environment's site-packages hold, read from their files alone: nothing is imported, so nothing can fail to load.

Works for an environment of any platform; building and the doctor read the same. `site` is a site-packages folder.
"""

from __future__ import annotations

import os
import re
import struct
from collections import defaultdict

from envbuilder import reading
from envbuilder.facts.model import Distribution, SharedFile
from envbuilder.torch_version import TorchBuild, parse_torch_version
from envbuilder.values import NamedTuple, replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_RECORD_LIMIT = 8 << 20
_NORMAL = re.compile(r"[-_.]+")
# RECORD lines of shared libraries (and of what says a version): the end of the path, hash, size. Each begins with plain
# text, which is looked for ten times faster than alternatives, or the start of 60,000 lines; the path is read backwards.
_RECORDED = tuple(re.compile(end + rb"\"?,([^,\n]*),(\d+)(?=\r?$)", re.MULTILINE) for end in (rb"\.so(?:\.[\d.]+)?", rb"version\.py"))
# Header collections: large RECORDs without a library in them.
_NO_LIBRARIES = frozenset({"nvidia-cuda-cccl", "nvidia-cuda-crt", "nvidia-cutlass", "pip", "setuptools", "sympy", "networkx"})
_MOST_NAMED = 8
_HEADERS = 1 << 16  # where an ELF file's header and its table of segments lie


class _Library(NamedTuple):
    """A line of a RECORD that matters: `path` relative to site-packages."""

    path: str
    digest: bytes
    size: int


@value
class Installed:
    """What the RECORDs of an environment say: its files, their bytes, and the paths that several distributions own."""

    files: int
    bytes: int
    shared: dict[str, tuple[str, ...]]


def normalized(name: str) -> str:
    """Return a distribution's canonical name (PEP 503)."""
    return _NORMAL.sub("-", name).lower()


def find_site(environment: Path) -> Path | None:
    """Return an environment's site-packages, or None if it is no environment."""
    return next(iter(sorted(environment.glob("lib/python3.*/site-packages"))), None)


def sites_of(environment: Path) -> list[Path]:
    """Return the folders of an environment that hold packages, those that serve first: a system has several Pythons' beside each other."""
    pythons = [name for name in reading.names(environment / "lib") if name.startswith("python3")]
    found = [
        site for kind in ("site", "dist") for python in pythons if (site := environment / "lib" / python / f"{kind}-packages").is_dir()
    ]
    if not found and any(name.endswith(".dist-info") for name in reading.names(environment)):
        return [environment]  # a folder made with `pip install --target`
    return sorted(found, key=lambda site: not any((site / package).is_dir() for package in ("vllm", "torch")))


def _listing(site: str | Path) -> Iterator[tuple[str, str, str]]:
    """Yield (canonical name, version, dist-info folder) of what is installed, as the folders' names say (PEP 427)."""
    for entry in (name for name in reading.names(site) if name.endswith(".dist-info")):
        name, _, version = entry.removesuffix(".dist-info").rpartition("-")
        if name:
            yield normalized(name), version, f"{site}/{entry}"


def distributions(site: Path) -> dict[str, str]:
    """Return {canonical name: version} of what is installed."""
    return dict(sorted((name, version) for name, version, _ in _listing(site)))


def record_rows(folder: str | Path) -> Iterator[tuple[str, int]]:
    """Yield (path, size or 0) of a dist-info folder's RECORD, as it is written there: it may name anything.

    Rows are cut at their last two commas rather than read as CSV: an environment has 60,000 of them, and only a path
    may be quoted.
    """
    for row in reading.text(f"{folder}/RECORD", limit=1 << 30).splitlines():
        path, _, size = row.rpartition(",")
        if path := path.rpartition(",")[0].strip('"'):
            yield path, int(size) if size.isdecimal() else 0


def installed(site: Path) -> Installed:
    """Read every RECORD (PEP 376), compiled files left out; paths are relative to site-packages, owners canonical names."""
    owner_of: dict[str, str] = {}
    shared: defaultdict[str, list[str]] = defaultdict(list)
    total = 0
    for name, _, folder in _listing(site):
        for path, size in record_rows(folder):
            if "__pycache__" in path:
                continue
            total += size
            if owner_of.setdefault(path, name) != name:
                shared[path].append(name)
    return Installed(files=len(owner_of), bytes=total, shared={path: (owner_of[path], *others) for path, others in shared.items()})


def read_distributions(site: str | Path) -> tuple[tuple[Distribution, ...], tuple[SharedFile, ...]]:
    """Return what is installed, with whether its libraries are whole, and the libraries that several brought, each another.

    Of a library that several brought, the one is there that was installed last: that it has not the size that the
    others recorded is no damage.
    """
    found = [(*_metadata(name, version, folder), folder) for name, version, folder in _listing(site)]
    recorded = [list(_libraries(reading.data(f"{folder}/RECORD", limit=_RECORD_LIMIT))) if holds else [] for _, holds, folder in found]
    owners: defaultdict[str, dict[str, _Library]] = defaultdict(dict)
    for (distribution, _, _), libraries in zip(found, recorded, strict=True):
        for library in libraries:
            owners[library.path][f"{distribution.name} {distribution.version}"] = library
    shared = {path: each for path, each in owners.items() if len({library.digest for library in each.values()}) > 1}
    whole = {path: min(library.size for library in each.values()) for path, each in shared.items()}
    return (
        tuple(
            _with_damage(distribution, str(site), libraries, whole) for (distribution, _, _), libraries in zip(found, recorded, strict=True)
        ),
        tuple(SharedFile(path=path, owners=tuple(each)) for path, each in shared.items()),
    )


def _metadata(name: str, version: str, folder: str) -> tuple[Distribution, bool]:
    """Return a distribution as its metadata says, and whether it may hold libraries."""
    # The headers end at the first empty line; what follows is the readme, which may be long and say anything.
    headers = reading.data(f"{folder}/METADATA").partition(b"\n\n")[0].decode(errors="replace").split("\n")
    wheel = reading.text(f"{folder}/WHEEL").split("\n")
    stated = next(_values(headers, "Version:"), "").split()
    pure = next(_values(wheel, "Root-Is-Purelib:"), "")
    # NVIDIA's wheels call themselves pure and hold libraries.
    without = name in _NO_LIBRARIES or (pure == "true" and not name.startswith("nvidia"))
    distribution = Distribution(
        name=name,
        version=stated[0] if stated else version,
        requires=tuple(line for line in _values(headers, "Requires-Dist:") if line and "extra" not in line),
        requires_python=next(_values(headers, "Requires-Python:"), ""),
        tags=tuple(_values(wheel, "Tag:")) if pure == "false" else (),
        build=next(_values(wheel, "Build:"), ""),
    )
    return distribution, not without


def _values(lines: list[str], name: str) -> Iterator[str]:
    """Yield the values of a field of a file in the format of mail headers; none that is wanted goes over several lines."""
    start = len(name)
    return (line[start:].strip() for line in lines if line.startswith(name))


def _libraries(record: bytes) -> Iterator[_Library]:
    for match in (match for pattern in _RECORDED for match in pattern.finditer(record)):
        start = record.rfind(b"\n", 0, match.start()) + 1
        path = record[start : record.index(b",", match.start())].decode(errors="replace").strip('"')
        if not path.endswith("version.py") or path.endswith(("/version.py", "/_version.py")):
            yield _Library(path, match[1], int(match[2][:18]))


def _with_damage(distribution: Distribution, site: str, libraries: Iterable[_Library], whole: dict[str, int]) -> Distribution:
    """Add the libraries that are not there, those cut short, and how many paths lead out of the environment.

    `whole` are the sizes that are enough for paths that others own as well.
    """
    missing, short, escapes = [], [], 0
    # lib/pythonX.Y/site-packages: wheels with data files reach up to the environment's own folder, and no further.
    prefix = f"{site.rsplit('/', 3)[0] if site.endswith('-packages') else site}/"
    for path, _, recorded in libraries:
        # A RECORD is data from a wheel: it may name anything. Only what lies in the environment is looked at.
        if "\0" in path or (
            (path.startswith("/") or ".." in path)
            and not os.path.normpath(f"{site}/{path}" if path[:1] != "/" else path).startswith(prefix)
        ):
            escapes += 1
            continue
        try:
            size = os.stat(f"{site}/{path}").st_size  # noqa: PTH116 - thousands of them
        except OSError:
            missing.append(path)
            continue
        if size < whole.get(path, recorded) and not _stripped(f"{site}/{path}", size):
            short.append(f"{path} ({size} of {recorded} bytes)")
    if not (missing or short or escapes):
        return distribution
    return replace(distribution, missing_files=tuple(missing[:_MOST_NAMED]), short_files=tuple(short[:_MOST_NAMED]), record_escapes=escapes)


def _stripped(path: str, size: int) -> bool:
    """Whether a library that is smaller than it was recorded holds all that its own tables name: strip(1) made it so.

    Debian strips what it packages after its RECORD was written, and images are made small that way.
    """
    start = reading.data(path, limit=_HEADERS)
    if len(start) < 64 or start[:6] != b"\x7fELF\2\1":  # 64-bit, little-endian
        return False
    segments, sections = struct.unpack_from("<QQ", start, 32)
    segment_size, segment_count, section_size, section_count = struct.unpack_from("<HHHH", start, 54)
    if not section_count or sections + section_size * section_count > size or segments + segment_size * segment_count > len(start):
        return False
    places = (segments + segment_size * number for number in range(segment_count))
    return segment_size >= 56 and all(sum(struct.unpack_from("<Q16xQ", start, place + 8)) <= size for place in places)


def torch_build(site: Path) -> TorchBuild | None:
    """Return which build of torch is installed. The wheel's name does not tell: `torch-2.11.0` may be +cu130 or +cpu."""
    return parse_torch_version(reading.text(site / "torch/version.py"))
