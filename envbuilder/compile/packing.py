"""Putting the wheel together: what was built, what is published, what is the source's own, and nothing else.

The published wheel of the same version says which files a wheel of vLLM holds. Each is accounted for: by a component
of the target, by the source (then the source's bytes are taken), or as metadata. What none of them explains is an
error, not a guess. The zip is the same for the same content: sorted, dated 1980, with plain modes.
"""

from __future__ import annotations

import base64
import csv
import fnmatch
import hashlib
import io
import re
import zipfile
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from packaging.utils import parse_wheel_filename

from envbuilder import __version__
from envbuilder.binaries.elf import read_elf_path
from envbuilder.compile import commits
from envbuilder.errors import VerificationError
from envbuilder.files import storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from envbuilder.targets.model import Component

_FIRST_DAY = (1980, 1, 1, 0, 0, 0)
_LEVEL = 6
_GLIBC = re.compile(r"GLIBC_2\.(\d+)(?:\.\d+)?$")
# glibc's libstdc++ companion: which GLIBCXX each manylinux allows is fixed by the oldest distribution with that glibc.
_GLIBCXX = {28: 24, 31: 28, 34: 29, 35: 30, 39: 33}  # glibc minor: newest GLIBCXX_3.4.N (PEP 600; auditwheel's policy)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file of the wheel: `origin` is "built", "published", "source" or "metadata"; `component` where one owns it."""

    path: str
    origin: str
    content: bytes
    executable: bool = False
    component: str = ""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A wheel that was written. `origins`: files by origin; `left_out`: files of the published wheel by component."""

    path: Path
    sha256: str
    size: int
    origins: Mapping[str, int]
    left_out: Mapping[str, int]
    differing: Sequence[str]


def pack(
    folder: Path,
    *,
    published: Path,
    source: Mapping[str, bytes],
    built: Mapping[str, Path],
    components: Sequence[Component],
    build_tag: str,
    commit: str = "",
) -> Packed:
    """Write the wheel into a folder. `built`: extensions by their file name; `commit`: where the source is one, and no release.

    Raises VerificationError: a file that nobody accounts for, an extension that was not built, another version.
    """
    name, release, _, tags = parse_wheel_filename(published.name)
    version = commits.local_version(str(release), commit) if commit else str(release)
    if commit:
        source = {**source, commits.VERSION_FILE: commits.version_file(version, commit)}
    with zipfile.ZipFile(published) as archive:
        members, left_out = _members(archive, source, built, components, of_commit=bool(commit))
        if commit:
            members += _added(archive, source, components)
        differing = sorted(
            m.path for m in members if m.origin == "source" and m.path in archive.namelist() and archive.read(m.path) != m.content
        )
    interpreter = min(f"{tag.interpreter}-{tag.abi}" for tag in tags)
    machine = next(iter(tags)).platform.rpartition("manylinux_")[2].split("_", 2)[2]
    platform = f"manylinux_2_{newest_glibc(built.values(), floor=_floor(published.name))}_{machine}"
    filename = f"{str(name).replace('-', '_')}-{version}-{build_tag}-{interpreter}-{platform}.whl"
    info = f"{str(name).replace('-', '_')}-{version}.dist-info"
    if commit:
        members = [_restated(member, info, version, source) for member in members]
    wheel = f"Wheel-Version: 1.0\nGenerator: envbuilder ({__version__})\nRoot-Is-Purelib: false\nTag: {interpreter}-{platform}\nBuild: {build_tag}\n"
    members.append(Member(path=f"{info}/WHEEL", origin="metadata", content=wheel.encode()))
    data = _zip(members, record=f"{info}/RECORD")
    path = folder / filename
    with storage_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    origins = {origin: sum(member.origin == origin for member in members) for origin in ("built", "published", "source", "metadata")}
    return Packed(
        path=path, sha256=hashlib.sha256(data).hexdigest(), size=len(data), origins=origins, left_out=left_out, differing=differing
    )


def _members(
    archive: zipfile.ZipFile, source: Mapping[str, bytes], built: Mapping[str, Path], components: Sequence[Component], *, of_commit: bool
) -> tuple[list[Member], dict[str, int]]:
    """Account for every file of the published wheel; one that a commit has dropped goes."""
    members: list[Member] = []
    left_out: dict[str, int] = {}
    strangers = []
    for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
        path, executable = entry.filename, bool(entry.external_attr >> 16 & 0o111)
        owner = owner_of(path, components)
        if entry.is_dir() or path.endswith((".dist-info/RECORD", ".dist-info/WHEEL")):
            continue
        if ".dist-info/" in path:
            members.append(Member(path=path, origin="metadata", content=archive.read(entry)))
        elif owner is not None and owner.how == "omitted":
            left_out[owner.name] = left_out.get(owner.name, 0) + 1
        elif owner is not None and owner.how == "source":
            members.append(Member(path=path, origin="built", content=_built(path, built), executable=True, component=owner.name))
        elif owner is not None:
            members.append(Member(path=path, origin="published", content=archive.read(entry), executable=executable, component=owner.name))
        elif path in source:
            members.append(Member(path=path, origin="source", content=source[path], executable=executable))
        elif of_commit and not path.endswith(".so"):
            left_out["not in this commit"] = left_out.get("not in this commit", 0) + 1
        else:
            strangers.append(path)
    if strangers:
        raise VerificationError(
            f"{len(strangers)} files of the published wheel are neither in the source nor in a component",
            why="\n".join(strangers[:20]),
            next="Give them a component in the target's `compile` table.",
        )
    return members, left_out


def _added(archive: zipfile.ZipFile, source: Mapping[str, bytes], components: Sequence[Component]) -> Iterator[Member]:
    """Yield the files of the package that the release did not have."""
    published = set(archive.namelist())
    for path in sorted(source.keys() - published):
        if path.startswith(commits.PACKAGE) and owner_of(path, components) is None:
            yield Member(path=path, origin="source", content=source[path])


def _restated(member: Member, info: str, version: str, source: Mapping[str, bytes]) -> Member:
    """Put a file of the release's metadata into the commit's."""
    if member.origin != "metadata":
        return member
    name = member.path.partition("/")[2]
    content = member.content
    if name == "METADATA":
        content = commits.metadata(content, version=version, requirements=commits.requirements_of(source))
    return replace(member, path=f"{info}/{name}", content=content)


def owner_of(path: str, components: Iterable[Component]) -> Component | None:
    """Return the component that a file of the wheel belongs to."""
    return next((it for it in components if any(fnmatch.fnmatchcase(path, pattern) for pattern in it.members)), None)


def _built(path: str, built: Mapping[str, Path]) -> bytes:
    name = path.rpartition("/")[2]
    if name not in built:
        raise VerificationError(f"{path} was not built", why=f"Built were: {', '.join(sorted(built)) or 'none'}.")
    return built[name].read_bytes()


def newest_glibc(extensions: Iterable[Path], *, floor: int) -> int:
    """Return the minor of the oldest glibc that has all symbol versions which the extensions ask for (at least `floor`)."""
    newest = floor
    for path in extensions:
        for need in read_elf_path(path).requires:
            if match := _GLIBC.match(need.version):
                newest = max(newest, int(match[1]))
            elif match := re.match(r"GLIBCXX_3\.4\.(\d+)$", need.version):
                newest = max(newest, next((glibc for glibc, cxx in _GLIBCXX.items() if cxx >= int(match[1])), max(_GLIBCXX)))
    return newest


def _floor(filename: str) -> int:
    found = re.findall(r"manylinux_2_(\d+)_", filename)
    return max(map(int, found), default=17)


# -- the zip -----------------------------------------------------------------------------------------------------


def _zip(members: Sequence[Member], *, record: str) -> bytes:
    rows = [[member.path, f"sha256={_digest(member.content)}", str(len(member.content))] for member in _ordered(members)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([*rows, [record, "", ""]])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member in (*_ordered(members), Member(path=record, origin="metadata", content=text.getvalue().encode())):
            entry = zipfile.ZipInfo(member.path, _FIRST_DAY)
            entry.create_system = 3
            entry.external_attr = (0o100755 if member.executable else 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, member.content, compresslevel=_LEVEL)
    return buffer.getvalue()


def _ordered(members: Iterable[Member]) -> Iterator[Member]:
    """Yield metadata last, as PEP 427 recommends: a reader finds it without reading the rest."""
    return iter(sorted(members, key=lambda member: (".dist-info/" in member.path, member.path)))


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def compressor() -> str:
    """Name what compressed the wheel: another zlib writes other bytes of the same content."""
    return f"zlib {zlib.ZLIB_RUNTIME_VERSION} level {_LEVEL}"
