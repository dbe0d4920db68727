"""The same place, made by Docker: for those who may use it on a machine where they may not make namespaces themselves.

Its image holds nothing: folders and links to be mounted upon. So no registry is asked, and what runs in it is this
machine's own /usr, as it is in the other ways.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from envbuilder.compile.inside.enter import ETC, TOP
from envbuilder.errors import ProgramError
from envbuilder.files import digest_of
from envbuilder.process import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Bind: TypeAlias = tuple[Path, Path, bool]  # from, to, writable
_DOCKER = "docker"


@contextlib.contextmanager
def running(command: Sequence[str | Path], *, binds: Sequence[Bind], folder: Path) -> Iterator[list[str | Path]]:
    """Yield the command that runs another one in a container; whatever happens inside, the container is gone afterwards.

    Where this process is killed outright, nobody tells the engine. What compiles then ends by itself: the launchers
    have lost their coordinator. Raises ProgramError without Docker, or where its engine is out of reach.
    """
    name = f"envbuilder-{os.getpid()}-{secrets.token_hex(4)}"
    options: list[str | Path] = [
        *("--rm", "--name", name, "--hostname", "envbuilder", "--log-driver", "none", "--workdir", folder),
        *("--network", "none", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        *("--user", f"{os.getuid()}:{os.getgid()}"),
    ]
    system = [Path("/", top) for top in TOP if Path("/", top).is_dir() and not Path("/", top).is_symlink()]
    system += [Path("/etc", entry) for entry in ETC if Path("/etc", entry).exists()]
    for source, goal, writable in [*((path, path, False) for path in system), *binds]:
        options += ["--mount", f"type=bind,source={source},target={goal}{'' if writable else ',readonly'}"]
    image = _image()
    try:
        yield [_DOCKER, "run", *options, image, *command]
    finally:
        with contextlib.suppress(ProgramError):  # it has ended by itself, as it should
            run([_DOCKER, "kill", name], capture=True, timeout_s=30)


def _image() -> str:
    """Return the name of the empty image, which is made where the engine does not have it."""
    links = {top: str(Path("/", top).readlink()) for top in TOP if Path("/", top).is_symlink()}
    name = f"envbuilder/place:{digest_of(links)[:12]}"
    with contextlib.suppress(ProgramError):
        run([_DOCKER, "image", "inspect", name], capture=True, timeout_s=30)
        return name
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "place.tar"
        with tarfile.open(archive, "w") as tar:
            for top, goal in links.items():
                link = tarfile.TarInfo(top)
                link.type, link.linkname = tarfile.SYMTYPE, goal
                tar.addfile(link)
            tar.addfile(tarfile.TarInfo("envbuilder"), io.BytesIO())
        run([_DOCKER, "import", archive, name], what="making an empty image", capture=True, timeout_s=60)
    return name
