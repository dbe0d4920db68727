"""The source that is compiled: unpacked from the locked sdist (or a commit's archive), edited, and what its build files would fetch."""

from __future__ import annotations

import hashlib
import re
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from envbuilder.errors import ConfigurationError, StepError, VerificationError
from envbuilder.files import remove_tree, storage_errors, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from envbuilder.targets.model import Edit

COMPILED = ("CMakeLists.txt", "cmake/", "csrc/")  # what of vLLM's source takes part in a compile
_LISTING = ".envbuilder-files"


class EditError(StepError):
    """A named edit of the source does not fit it."""

    reference = "edit"


@dataclass(frozen=True, kw_only=True)
class Pin:
    """A source that CMake would fetch: its name, its repository (as "owner/name") and the commit or tag."""

    name: str
    repository: str
    revision: str


def read_source(archive: Path, *, prefixes: Sequence[str] = ()) -> dict[str, bytes]:
    """Return an archive's files by their path below its top folder; of links and devices an sdist of vLLM has none.

    Raises VerificationError for an archive that is none or whose entries climb out of it.
    """
    files = {}
    try:
        with tarfile.open(archive, "r:*") as tar:
            for entry in tar:
                top, _, path = entry.name.partition("/")
                if entry.isdir() or not path:
                    continue
                parts = PurePosixPath(path).parts
                if not entry.isreg() or ".." in parts or top in {"", ".."} or path.startswith("/"):
                    raise VerificationError(
                        f"{archive.name} holds {entry.name!r}, which no source should", next="Do not build from this file."
                    )
                if not prefixes or path.startswith(tuple(prefixes)):
                    content = tar.extractfile(entry)
                    assert content is not None  # noqa: S101 - it is a regular file
                    files[path] = content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise VerificationError(
            f"{archive.name} is not a sound source", why=str(error), next="Remove it from the store and fetch it again."
        ) from error
    return files


def edited(files: Mapping[str, bytes], edits: Iterable[Edit]) -> dict[str, bytes]:
    """Return the files with all edits made. Raises EditError, naming every edit that does not fit exactly once."""
    changed = dict(files)
    faults = []
    for edit in edits:
        text = changed.get(edit.path, b"").decode(errors="surrogateescape")
        count = text.count(edit.find)
        if edit.path not in changed:
            faults.append(f"{edit.name}: there is no {edit.path}")
        elif count != 1:
            faults.append(f"{edit.name}: {edit.path} has its text {count} times: {_shortened(edit.find)}")
        else:
            changed[edit.path] = text.replace(edit.find, edit.replace).encode(errors="surrogateescape")
    if faults:
        raise EditError(
            f"{len(faults)} edits of the source do not fit",
            why="\n".join(faults),
            next="This source is another one than the target's edits were written for. See docs/source-build.md on how to renew them.",
        )
    return changed


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 90 else line[:87] + "..."


def synchronize(files: Mapping[str, bytes], folder: Path) -> int:
    """Make a folder hold these files and return how many were written. A file that is the same keeps its time: it is not rebuilt.

    What a configure run has generated beside them stays; what an earlier source had and this one has not, goes.
    """
    listing = folder / _LISTING
    before = set(listing.read_text(encoding="utf-8").splitlines()) if listing.exists() else set()
    written = 0
    with storage_errors(folder):
        for path in before - files.keys():
            remove_tree(folder / path)
        for path, content in files.items():
            goal = folder / path
            if not goal.is_file() or goal.read_bytes() != content:
                goal.parent.mkdir(parents=True, exist_ok=True)
                goal.write_bytes(content)
                goal.chmod(0o644)
                written += 1
    write_atomic(listing, "".join(f"{path}\n" for path in sorted(files)))
    return written


# -- what CMake would fetch --------------------------------------------------------------------------------------

_CALL = re.compile(r"FetchContent_(?:Declare|Populate)\s*\(\s*([\w.-]+)(.*?)\)", re.DOTALL)
_SET = re.compile(r'^\s*set\s*\(\s*(\w+)\s+"?([^")\s]+)"?\s*\)', re.MULTILINE)
_COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)


def pins_of(files: Mapping[str, bytes]) -> tuple[Pin, ...]:
    """Read from vLLM's own build files what they would fetch from where (FetchContent's calls that name a repository)."""
    return tuple(sorted(set(_pins(files)), key=lambda pin: (pin.name, pin.revision)))


def _pins(files: Mapping[str, bytes]) -> Iterator[Pin]:
    for path, content in files.items():
        if not (path == "CMakeLists.txt" or path.endswith(".cmake")):
            continue
        text = _COMMENT.sub("", content.decode(errors="replace"))
        variables = dict(_SET.findall(text))
        for name, body in _CALL.findall(text):
            words = dict(re.findall(r'\b(GIT_REPOSITORY|GIT_TAG)\s+"?([^\s"]+)', body))
            if "GIT_REPOSITORY" in words and "GIT_TAG" in words:
                revision, repository = (_resolved(words[key], variables) for key in ("GIT_TAG", "GIT_REPOSITORY"))
                repository = "/".join(repository.removesuffix(".git").split("/")[-2:])
                yield Pin(name=name, repository=repository, revision=revision)


def _resolved(word: str, variables: Mapping[str, str]) -> str:
    variable = re.fullmatch(r"\$\{(\w+)\}", word)
    return variables.get(variable[1], word) if variable else word


def require_pin(pins: Iterable[Pin], name: str, revision: str) -> None:
    """Check that vLLM asks for the revision that a target gives it. Raises ConfigurationError."""
    asked = {pin.name: pin.revision for pin in pins}
    if asked.get(name) != revision:
        raise ConfigurationError(
            f"the target gives vLLM {name} {revision}",
            why=f"Its build files ask for {asked.get(name, 'no such source')}.",
            next="Name a distribution in the target that carries the revision asked for.",
        )


def tree_hash(folder: Path) -> str:
    """Return the sha256 over a folder's files: their paths, whether they may be executed, and their bytes; no times, no owners."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            continue
        payload = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        kind = "l" if path.is_symlink() else "x" if status.st_mode & 0o100 else "f"
        digest.update(f"{kind} {path.relative_to(folder).as_posix()} {len(payload)}\n".encode(errors="surrogateescape"))
        digest.update(payload)
    return digest.hexdigest()
