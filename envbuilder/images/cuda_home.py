"""A CUDA toolkit where those look for it who compile at run time: links to what the wheels hold.

NVIDIA's wheels bring nvcc, its headers and its libraries, below site-packages and the libraries under their sonames alone.
FlashInfer and torch's extension builder look in /usr/local/cuda, and link with `-lcudart` from lib64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from envbuilder.images.tree import symlink

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from envbuilder.images.tree import Entry
    from envbuilder.images.wheels import Wheel

HOME = "usr/local/cuda"
_COMPILER = "/bin/nvcc"


def toolkit_links(wheels: Sequence[Wheel], site: str) -> Iterator[Entry]:
    """Yield the links into site-packages, a path without its first slash; none where no wheel brings nvcc."""
    members = [name for wheel in wheels if wheel.name.startswith("nvidia-") for name in wheel.members()]
    home = next((name.removesuffix(_COMPILER) for name in members if name.endswith(_COMPILER)), None)
    if home is None:
        return
    for part in ("bin", "include", "nvvm"):
        yield symlink(f"{HOME}/{part}", f"/{site}/{home}/{part}")
    for name in members:
        folder, _, library = name.rpartition("/")
        if folder == f"{home}/lib" and library:
            yield symlink(f"{HOME}/lib64/{library}", f"/{site}/{name}")
            plain, dot_so, version = library.partition(".so")
            if version:  # the name that the linker asks for; wheels leave it out
                yield symlink(f"{HOME}/lib64/{plain}{dot_so}", library)
