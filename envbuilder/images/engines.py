"""Container engines, for those who have one: handing images over, and building the same ones from Dockerfiles.

The Dockerfiles in `dockerfiles/` are for people who extend them. What they add are our layers' files, so an engine makes
an image with the same files; its layers are its own, and have other digests.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import zstandard

from envbuilder.errors import ProgramError, StepError
from envbuilder.files import remove_tree, storage_errors, vanishing, write_atomic
from envbuilder.images.docker_archive import write_docker_archive
from envbuilder.process import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import docker

    from envbuilder.images.oci import Image, Layout

_BUFFER = 1 << 20


class EngineError(StepError):
    """There is no engine, or it stopped halfway."""

    reference = "engine"


@dataclass(frozen=True, kw_only=True)
class DockerEngine:
    """The engine that DOCKER_HOST names, or the machine's own."""

    client: docker.DockerClient

    @classmethod
    def connect(cls) -> DockerEngine:
        """Raises EngineError when nobody answers."""
        import docker  # noqa: PLC0415 - only here

        try:
            client = docker.from_env(timeout=600)
            client.ping()
        except (docker.errors.DockerException, OSError) as error:
            raise _no_engine(error) from error
        return cls(client=client)

    @vanishing()
    def load(self, layout: Layout, images: Mapping[str, Image]) -> dict[str, str]:
        """Hand images over by their tags; return the engine's ids for them by tag, which are the digests of their configurations.

        Raises EngineError, and VerificationError where the layout does not hold what it should: no engine notices half a layer.
        """
        import docker  # noqa: PLC0415

        layout.require(blob for image in images.values() for blob in image.blobs)
        reader, writer = os.pipe()
        failures: list[BaseException] = []

        def feed() -> None:
            try:
                with os.fdopen(writer, "wb") as goal:
                    write_docker_archive(layout, images, goal)
            except BrokenPipeError:
                pass  # the engine stopped listening: what it says is the error
            except BaseException as error:  # noqa: BLE001 - told by the thread that waits
                failures.append(error)

        thread = threading.Thread(target=feed, daemon=True)
        thread.start()
        try:
            with os.fdopen(reader, "rb") as archive:
                self.client.images.load(archive)
            return {tag: str(self.client.images.get(tag).id) for tag in images}
        except (docker.errors.DockerException, OSError) as error:
            thread.join()
            if failures:  # the engine only saw that the archive ended
                raise failures[0] from error
            raise EngineError(
                f"the Docker engine did not take {', '.join(images)}",
                why=str(error),
                next="See the engine's log, and whether its disk is full.",
            ) from error
        finally:
            thread.join()


def _no_engine(error: BaseException) -> EngineError:
    return EngineError(
        "no Docker engine answers",
        why=str(error),
        next="Start one, or name it in DOCKER_HOST; images are written without an engine by `--engine none`.",
    )


@vanishing()
def build_with(engine: str, layout: Layout, image: Image, tag: str, *, scratch: Path, log: Path) -> str:
    """Build an image from its Dockerfile with docker's BuildKit, or with buildah; return the engine's id for it."""
    program = shutil.which(engine)
    if program is None:
        raise EngineError(f"{engine} is not installed", next=f"Install {engine}, or leave --engine out: envbuilder needs none.")
    if rootfs := image.labels.get("envbuilder.rootfs"):
        raise EngineError(
            f"{engine} cannot build {image.name} from its files",
            why=f"Its root filesystem is {rootfs}, whose layers may delete files of one another: only that image's own layers can.",
            next=f"Leave --engine out, and write a Dockerfile FROM {rootfs} for what you want to put between.",
        )
    layout.require(image.blobs)
    if engine == "docker":
        DockerEngine.connect()
    with _context(layout, image, scratch) as folder:
        identity = folder / "id"
        try:
            _build([program, *_options(engine), "--iidfile", identity, "--tag", tag, folder], engine, image, log)
        except ProgramError as error:
            raise EngineError(error.what, why=error.why, next=error.next) from error
        return identity.read_text(encoding="utf-8").strip()


def _build(argv: Sequence[str | Path], engine: str, image: Image, log: Path) -> None:
    """Run a build, with BuildKit where docker has it: a client that came without its buildx part says so, and has the older builder."""
    what = f"building {image.name} with {engine}"
    try:
        run(argv, env={**os.environ, "DOCKER_BUILDKIT": "1"}, log=log, timeout_s=3600, what=what)
    except ProgramError as error:
        if engine != "docker" or "buildx" not in error.why:
            raise
        run(argv, env={**os.environ, "DOCKER_BUILDKIT": "0"}, log=log, timeout_s=3600, what=what)


def _options(engine: str) -> Sequence[str]:
    if engine == "docker":
        return ["build", "--network", "none", "--pull=false"]
    # chroot: a build of ours runs nothing, and the other ways need privileges and cgroups that a machine may not give
    return ["bud", "--isolation", "chroot", "--pull-never", "--timestamp", "1577836800", "--format", "oci"]


@contextlib.contextmanager
def _context(layout: Layout, image: Image, scratch: Path) -> Iterator[Path]:
    """A folder with an image's layers as tars, in groups that the Dockerfile adds, and the Dockerfile with its settings."""
    remove_tree(scratch)
    try:
        with storage_errors(scratch):
            names = [entry["created_by"].removeprefix("envbuilder: ") for entry in image.config["history"]]
            for number, (name, descriptor) in enumerate(zip(names, image.layers, strict=True)):
                goal = scratch / _group(name) / f"{number:03}.tar"
                goal.parent.mkdir(parents=True, exist_ok=True)
                with layout.blob(descriptor.digest).open("rb") as packed, goal.open("wb") as plain:
                    _unpack(packed, plain)
            write_atomic(scratch / "Dockerfile", dockerfile(image))
        yield scratch
    finally:
        remove_tree(scratch)


def _group(name: str) -> str:
    return name if name in {"rootfs", "toolchain"} else "own" if name in {"overlays", "envbuilder"} else "wheels"


def _unpack(packed: IO[bytes], plain: IO[bytes]) -> None:
    zstandard.ZstdDecompressor().copy_stream(packed, plain, read_size=_BUFFER, write_size=_BUFFER)


def dockerfile(image: Image) -> str:
    """Return the image's Dockerfile, with what its target sets: variables, user, labels, what is started."""
    config: dict[str, Any] = image.config["config"]
    text = (_FOLDER / f"{config['Labels']['envbuilder.image']}.Dockerfile").read_text(encoding="utf-8")
    lines = [f"ENV {name}={json.dumps(value)}" for name, _, value in (entry.partition("=") for entry in config["Env"])]
    lines += [f"LABEL {json.dumps(name)}={json.dumps(value)}" for name, value in config["Labels"].items()]
    lines += [f"WORKDIR {config['WorkingDir']}", f"USER {config['User']}"]
    lines += [f"ENTRYPOINT {json.dumps(config['Entrypoint'])}"] if "Entrypoint" in config else []
    return "\n".join([text.rstrip(), "", *lines, f"CMD {json.dumps(config['Cmd'])}", ""])


_PACKAGED = Path(__file__).resolve().parent.parent / "_dockerfiles"  # in the wheel; in a checkout they are at the top
_FOLDER = _PACKAGED if _PACKAGED.is_dir() else _PACKAGED.parent.parent / "dockerfiles"
