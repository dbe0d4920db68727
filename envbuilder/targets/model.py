"""What a target is: the platform, the releases that can be built for it, and what must hold in each environment.

A target is one TOML file. It is read at the boundary by pydantic, strictly: an unknown key is an error that names
the nearest known one. A *release* is a vLLM version with the world that fits it; an *environment* is one of its
two halves, `serve` and `quantize` (no llmcompressor release shares vLLM's pin of compressed-tensors).
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping  # noqa: TC003 - pydantic reads the annotations
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from envbuilder.errors import ConfigurationError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydantic_core import ErrorDetails

SCHEMA = "envbuilder/target/1"
Machine: TypeAlias = Literal["x86_64", "aarch64"]
EnvironmentName: TypeAlias = Literal["serve", "quantize"]
ENVIRONMENTS: tuple[EnvironmentName, ...] = ("serve", "quantize")


def _requirement(text: str) -> str:
    try:
        address = Requirement(text).url
    except InvalidRequirement as error:
        raise ValueError(f"not a requirement: {error}") from error
    if address:
        raise ValueError("a requirement names a version, not an address: a lock names no host")
    return text


def _specifier(text: str) -> str:
    try:
        SpecifierSet(text)
    except InvalidSpecifier as error:
        raise ValueError(str(error)) from error
    return text


def _wheel_name(text: str) -> str:
    try:
        parse_wheel_filename(text)
    except InvalidWheelFilename as error:
        raise ValueError(str(error)) from error
    return text


_Requirement: TypeAlias = Annotated[str, AfterValidator(_requirement)]
_Specifier: TypeAlias = Annotated[str, AfterValidator(_specifier)]
Sha256: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=lambda name: name.replace("_", "-"))


class VersionGate(_Model):
    """A distribution is there, in a version that fits."""

    kind: Literal["version"]
    distribution: str
    specifier: _Specifier
    why: str


class TorchBuildGate(_Model):
    """torch is this very build: `version` with its local part, and the CUDA it was built for (none for a CPU build)."""

    kind: Literal["torch-build"]
    version: str
    cuda: str | None = None
    why: str


class ArchitectureGate(_Model):
    """vLLM's registry knows a model architecture."""

    kind: Literal["architecture"]
    architecture: str
    why: str


class AttentionBackendGate(_Model):
    """vLLM's server takes `--attention-backend`, and knows the backend of that name."""

    kind: Literal["attention-backend"]
    backend: str
    why: str


Gate: TypeAlias = Annotated[VersionGate | TorchBuildGate | ArchitectureGate | AttentionBackendGate, Field(discriminator="kind")]


class Exclusion(_Model):
    """A distribution that is left out though something requires it, and why that is right."""

    name: str
    reason: str


class ExpectedAbi(_Model):
    """A verdict of the ABI check that is known and harmless: a path pattern below site-packages, and why."""

    path: str
    verdict: Literal["undefined-symbols", "missing-library", "wrong-machine", "incomplete-build", "not-elf"]
    reason: str


class SharedPaths(_Model):
    """A rule for paths that two distributions own: the one whose files are there, the one whose are not, and why."""

    owner: str
    over: str
    reason: str


class KnownFile(_Model):
    """A wheel that the locking machine may not reach, named by hash, with where the hash was read."""

    filename: Annotated[str, AfterValidator(_wheel_name)]
    sha256: Sha256
    size: int = 0
    source: str


class SourceFile(_Model):
    """The sdist that a release is built from, by hash."""

    filename: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]*\.tar\.gz$")]
    sha256: Sha256
    size: int


class Commit(_Model):
    """A commit of a public git repository, "owner/name". `revision` is a commit, a tag or a branch; the lock says which commit it was."""

    repository: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")]
    revision: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w./+-]*$")]


class SourceTree(_Model):
    """A source that CMake would fetch, taken from a folder of a locked wheel, or of a locked commit: where it goes below `deps/`.

    `pin` is what vLLM's own build files ask for and must be found in them; `sha256` is the tree's hash
    (envbuilder.compile.sources.tree_hash). A commit's bytes are in the lock.
    """

    name: str
    distribution: str = ""
    git: Commit | None = None
    path: str = ""
    goal: str
    pin: str = ""
    sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _from_one_place(self) -> SourceTree:
        if bool(self.distribution) == bool(self.git):
            raise ValueError("a tree comes from a `distribution` or from `git`")
        if self.distribution and not (self.path and self.sha256):
            raise ValueError("a tree of a distribution needs its `path` and its `sha256`")
        return self


class Component(_Model):
    """A part of the wheel that is more than Python: built here, taken from the published wheel, or left out, and why.

    `members` are path patterns inside the wheel (fnmatch; `*` crosses folders).
    """

    name: str
    how: Literal["source", "published", "omitted"]
    members: tuple[str, ...] = ()
    reason: str


class Edit(_Model):
    """A change to a file of the source: `find` must be there exactly once."""

    name: str
    path: str
    find: Annotated[str, Field(min_length=1)]
    replace: str
    reason: str


class Compile(_Model):
    """How a release's vLLM is built from source: from its sdist, or from a commit, whose wheel is the release's with another source.

    `arch` is one GPU in TORCH_CUDA_ARCH_LIST's words ("12.1a"). `requires` are the distributions of the build, for the
    machine that builds: these and none that they require in turn. `cuda` are those of the serve environment that make
    up the CUDA toolkit, for the machine that is built for.
    """

    sdist: SourceFile | None = None
    git: Commit | None = None
    arch: Annotated[str, Field(pattern=r"^\d+\.\d[af]?$")]
    requires: tuple[_Requirement, ...]
    cuda: tuple[str, ...]
    trees: tuple[SourceTree, ...]
    components: tuple[Component, ...]
    edits: tuple[Edit, ...]

    @model_validator(mode="after")
    def _one_source(self) -> Compile:
        if (self.sdist is None) == (self.git is None):
            raise ValueError("a source build names an `sdist` or a commit (`git`)")
        return self

    @property
    def commits(self) -> Mapping[str, Commit]:
        """The commits that are needed, by the name of their source."""
        asked = {"vllm": self.git, **{tree.name: tree.git for tree in self.trees}}
        return {name: commit for name, commit in asked.items() if commit}


class Environment(_Model):
    """One half of a release. `arguments` are what an image's entry point gives vLLM's server, unless its caller says otherwise."""

    requires: tuple[_Requirement, ...]
    constraints: tuple[_Requirement, ...] = ()
    excludes: tuple[Exclusion, ...] = ()
    overlays: tuple[str, ...] = ()
    variables: Mapping[str, str] = {}
    arguments: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
    expected_abi: tuple[ExpectedAbi, ...] = ()
    shared_paths: tuple[SharedPaths, ...] = ()


class Release(_Model):
    """A vLLM version with the world that fits it."""

    vllm: Literal["source", "published"]
    torch_backend: str | None = None
    serve: Environment
    quantize: Environment
    compile: Compile | None = None
    known_files: tuple[KnownFile, ...] = ()

    @model_validator(mode="after")
    def _source_says_how(self) -> Release:
        if self.vllm == "source" and self.compile is None:
            raise ValueError("vllm = 'source' needs a `compile` table")
        return self

    def environments(self) -> Iterator[tuple[EnvironmentName, Environment]]:
        yield "serve", self.serve
        yield "quantize", self.quantize


class Rootfs(_Model):
    """A registry image to stand on: its path in a registry, without the registry's host, and the digest of its manifest or list."""

    image: Annotated[str, Field(pattern=r"^[a-z0-9]+([._/-]+[a-z0-9]+)*$")]
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Images(_Model):
    """The images of a target: the Debian packages of their root filesystem, or an image in their place, and how layers are written.

    `suite` is Debian's name of the release, `python` the minor version of the root filesystem's Python; `packages` and
    `dev_packages` are what apt is asked for (`?essential` is apt's pattern for what Debian itself calls essential).
    """

    rootfs: Rootfs | None = None
    suite: Annotated[str, Field(pattern=r"^[a-z]+$")] | None = None
    python: Annotated[str, Field(pattern=r"^3\.\d+$")]
    packages: tuple[str, ...] = ()
    dev_packages: tuple[str, ...] = ()
    compression: Literal["zstd"] = "zstd"
    level: Annotated[int, Field(ge=1, le=19)] = 2
    user: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")] = "envbuilder"
    uid: Annotated[int, Field(ge=1000, le=59999)] = 1000

    @model_validator(mode="after")
    def _one_root_filesystem(self) -> Images:
        if self.rootfs and (self.suite or self.packages or self.dev_packages):
            raise ValueError("a `rootfs` image takes the place of `suite`, `packages` and `dev-packages`")
        if not self.rootfs and not (self.suite and self.packages):
            raise ValueError("images need a `suite` and `packages`, or a `rootfs` image")
        return self


class Target(_Model):
    """What can be built, for which machine.

    `glibc` is the newest that the target's machines are sure to have; `gpu` their GPU, where it is one and the same ("sm_121a");
    `cross_python` the Python of its machines, which
    an environment gets when it is assembled on another kind of machine (None: that is not offered).
    """

    schema_: Literal["envbuilder/target/1"] = Field(alias="schema")
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    summary: str
    platforms: Annotated[tuple[Literal["linux/x86_64", "linux/aarch64"], ...], Field(min_length=1)]
    glibc: Annotated[str, Field(pattern=r"^2\.\d+$")]
    gpu: Annotated[str, Field(pattern=r"^sm_\d{2,3}[af]?$")] | None = None
    python: _Specifier
    cross_python: Annotated[str, Field(pattern=r"^3\.\d+\.\d+$")] | None = None
    device: Literal["cpu", "cuda"]
    default_release: str
    images: Images | None = None
    releases: Mapping[str, Release]

    @model_validator(mode="after")
    def _default_release_exists(self) -> Target:
        if self.default_release not in self.releases:
            raise ValueError(f"default-release {self.default_release!r} is not among the releases")
        return self

    @property
    def machines(self) -> tuple[Machine, ...]:
        """The machines' names in `platform.machine()` and in wheel tags."""
        return tuple("aarch64" if platform == "linux/aarch64" else "x86_64" for platform in self.platforms)

    def release(self, name: str | None) -> tuple[str, Release]:
        """Return the release of that name, or the default one."""
        chosen = name or self.default_release
        if chosen not in self.releases:
            raise UnknownNameError("release", chosen, self.releases, why=f"Target {self.name} has no such release.")
        return chosen, self.releases[chosen]


def read_target(path: Path) -> Target:
    """Read a target's TOML file. Raises ConfigurationError, with every fault in it, its place and the nearest known key."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML", why=str(error)) from error
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}", why=error.strerror or str(error)) from error
    try:
        return Target.model_validate({**data, "releases": _extended(data.get("releases"))})
    except ValidationError as error:
        faults = "\n".join(_explain(detail) for detail in error.errors())
        raise ConfigurationError(f"{path} is not a target", why=faults, next="docs/targets.md lists every key.") from error


def _extended(releases: Any) -> Any:  # noqa: ANN401 - not validated yet
    """Give each release with an `extends` what the other one has: tables are merged, lists added to, the rest replaced."""
    if not isinstance(releases, dict):
        return releases
    merged: dict[str, Any] = {}
    for name, release in releases.items():
        base = release.get("extends") if isinstance(release, dict) else None
        if base is not None and not (isinstance(base, str) and base in merged):
            raise ConfigurationError(f"release {name!r} extends {base!r}", why=f"There is no release {base!r} before it in the file.")
        own = {key: value for key, value in release.items() if key != "extends"} if base is not None else release
        merged[name] = _merged(merged[base], own) if base is not None else own
    return merged


def _merged(base: Any, own: Any) -> Any:  # noqa: ANN401 - any part of a release
    match base, own:
        case dict(), dict():
            return {
                key: _merged(base[key], own[key]) if key in base and key in own else own.get(key, base.get(key)) for key in {**base, **own}
            }
        case list(), list():
            return [*base, *own]
        case _:
            return own


def _explain(detail: ErrorDetails) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] != "extra_forbidden":
        return f"{place}: {detail['msg']}"
    key = str(detail["loc"][-1])
    near = difflib.get_close_matches(key, _known_keys(), n=1)
    return f"{place}: unknown key" + (f"; did you mean {near[0]!r}?" if near else "")


def _known_keys() -> list[str]:
    models: tuple[type[BaseModel], ...] = (
        Target,
        Release,
        Environment,
        VersionGate,
        TorchBuildGate,
        ArchitectureGate,
        AttentionBackendGate,
        Images,
        Rootfs,
        Exclusion,
        ExpectedAbi,
        SharedPaths,
        KnownFile,
    )
    models += (SourceFile, SourceTree, Component, Edit, Compile)
    return sorted({field.alias or name for model in models for name, field in model.model_fields.items()})
