"""The part of a lock that building vLLM from source needs: the sdist, what its CMake would fetch, and the build's own wheels.

`build.txt` holds the wheels, as requirements with hashes, for every machine that may build; the rest is in
`inputs.toml`. A source that CMake would fetch is named by repository and revision as vLLM's own build files name
them; whence it is taken instead, or why not at all, is the target's word and stands in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from envbuilder.files import digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuilder.locking.model import LockedRequirement
    from envbuilder.targets.model import Compile


@dataclass(frozen=True, kw_only=True)
class LockedSource:
    """A source: a file (`filename`, `sha256`, `size`), or what CMake would fetch (`repository`, `revision`).

    A file is vLLM's sdist, or the archive of a `commit` (envbuilder.store.git says how it is written). `trees` are the
    folders of locked wheels that stand in for what CMake would fetch, each with its tree hash; none: it is not used.
    """

    name: str
    filename: str = ""
    sha256: str = ""
    size: int = 0
    repository: str = ""
    revision: str = ""
    commit: str = ""
    trees: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SourceLock:
    """`intent` is a sha256 in hex; `requirements` are build.txt's."""

    intent: str
    requirements: tuple[LockedRequirement, ...]
    sources: tuple[LockedSource, ...]

    @property
    def archives(self) -> dict[str, LockedSource]:
        """The sources that are files, by name; "vllm" is one of them."""
        return {source.name: source for source in self.sources if source.filename}


def source_intent(compile_: Compile) -> str:
    """Return the digest of what a target asks for to build from source; edits and components have no part in the lock."""
    asked = compile_.model_dump(include={"sdist", "git", "trees"}, exclude_none=True)
    return digest_of({**asked, "requires": sorted(compile_.requires)})


def source_text(lock: SourceLock) -> list[str]:
    """Return the lines of inputs.toml that speak of sources."""
    lines = ["[source]", f'intent = "sha256:{lock.intent}"', ""]
    for source in sorted(lock.sources, key=lambda source: (source.name, source.revision)):
        lines += ["[[source.sources]]", f"name = {json.dumps(source.name)}"]
        if source.repository:
            lines += [f"repository = {json.dumps(source.repository)}", f"revision = {json.dumps(source.revision)}"]
        if source.commit:
            lines += [f'commit = "{source.commit}"']
        if source.filename:
            lines += [f"filename = {json.dumps(source.filename)}", f'sha256 = "{source.sha256}"', f"size = {source.size}"]
        else:
            trees = ", ".join(f'{json.dumps(place)} = "{tree}"' for place, tree in sorted(source.trees.items()))
            lines += [f"trees = {{ {trees} }}" if trees else "trees = {}"]
        lines.append("")
    return lines


def parse_source_lock(table: Mapping[str, Any], requirements: tuple[LockedRequirement, ...]) -> SourceLock:
    """Read what source_text wrote. Raises KeyError or TypeError on anything else."""
    sources = tuple(LockedSource(**row) for row in table["sources"])
    return SourceLock(intent=table["intent"].removeprefix("sha256:"), requirements=requirements, sources=sources)
