"""What makes a commit's wheel another one than the release's: its version, its requirements, its own list of files.

A release's wheel holds every file that is tracked below `vllm/`, and requires what `requirements/cuda.txt` says: so it
is with 0.23.0, but for one bound that its publisher added (tests/integration). A commit's version is the release's with the commit as local label
(PEP 440): it runs with that release's locked packages, and is told apart from it.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement

from envbuilder.errors import VerificationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACKAGE = "vllm/"
VERSION_FILE = "vllm/_version.py"  # written by setuptools-scm into an sdist, in no commit
_REQUIREMENTS = "requirements/cuda.txt"


def local_version(release: str, commit: str) -> str:
    return f"{release}+g{commit[:9]}"


def version_file(version: str, commit: str) -> bytes:
    """Return a module that says to vLLM what setuptools-scm's would say."""
    release, _, local = version.partition("+")
    parts = (*map(int, release.split(".")), local) if local else tuple(map(int, release.split(".")))
    lines = [f"__version__ = version = {version!r}", f"__version_tuple__ = version_tuple = {parts!r}"]
    return "\n".join([*lines, f"__commit_id__ = commit_id = {'g' + commit[:9]!r}", ""]).encode()


def requirements_of(source: Mapping[str, bytes]) -> list[str]:
    """Return what a CUDA wheel of this source requires. Raises VerificationError where its files cannot be read."""
    try:
        return [str(requirement) for requirement in _requirements(source, _REQUIREMENTS)]
    except (KeyError, InvalidRequirement, RecursionError) as error:
        raise VerificationError(
            "the commit does not say what vLLM requires",
            why=f"{_REQUIREMENTS}: {error}",
            next="Its layout is not the one that this envbuilder knows: build from a release's sdist.",
        ) from error


def _requirements(source: Mapping[str, bytes], path: str) -> Iterator[Requirement]:
    for line in source[path].decode().splitlines():
        text = line.partition(" #")[0].strip()
        if text.startswith("-r"):
            yield from _requirements(source, posixpath.normpath(posixpath.join(posixpath.dirname(path), text[2:].strip())))
        elif text and not text.startswith(("#", "-")):
            yield Requirement(text)


def metadata(published: bytes, *, version: str, requirements: list[str]) -> bytes:
    """Return a wheel's METADATA with another version and other requirements; those of extras stay as they were published."""
    head, blank, body = published.decode().partition("\n\n")
    lines = []
    for line in head.split("\n"):
        name, _, value = line.partition(": ")
        if name == "Version":
            lines.append(f"Version: {version}")
        elif name != "Requires-Dist" or "extra ==" in value:
            lines.append(line)
    lines += [f"Requires-Dist: {requirement}" for requirement in requirements]
    return ("\n".join(lines) + blank + body).encode()
