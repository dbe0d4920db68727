"""Finding things in an installed environment: its shared objects, which of them are extensions, and its torch."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter, deque

from envbuilder import elsewhere, reading
from envbuilder.binaries.verdicts import TorchInfo
from envbuilder.errors import ConfigurationError
from envbuilder.torch_version import parse_torch_version
from envbuilder.values import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

SHARED_OBJECT = re.compile(r"\.so(\.[0-9]+)*$")
_TAGGED = re.compile(r"\.(?:cpython-(?P<cpython>\d+t?)[^.]*|(?P<stable>abi3t?)|(?P<other>pypy\d+|graalpy\w*)[^.]*)\.so$")
_MAX_VERSION_FILE = 1 << 16
_MANY_FOLDERS, _WALK_LIMIT_S = 256, 600
# What torch/__init__.py loads by full path after its global dependencies (_preload_cuda_deps), in its order, as far as
# it finds them: vLLM's spinloop and DeepGEMM find libnvrtc that way and no other.
_PRELOADED = ("cublasLt", "cublas", "cudnn", "nvrtc", "nvrtc-builtins", "cudart", "cupti", "cufft", "curand")
_PRELOADED_TOO = ("nvJitLink", "cusparse", "cusparseLt", "cusolver", "nccl", "nvshmem_host", "cufile")
# Of these no torch library speaks, so a torch without its dependencies beside it does not name them.
_UNNAMED = ("nvrtc", "nvJitLink", "cupti")
TORCH_LIBRARY = re.compile(r"lib(torch|c10)(_\w+)?\.so$")
# Those that `import torch` loads, the one first that needs the others.
TORCH_LIBRARIES = ("libtorch_python.so", "libtorch.so", "libtorch_cuda.so", "libtorch_cpu.so", "libc10_cuda.so", "libc10.so")


@value
class TorchBuild:
    """A torch on disk. `modules`: its own extension and libraries; `visible`: what it loads for all to see (RTLD_GLOBAL).

    `preloaded`: CUDA libraries that it loads by path. `assumed`: sonames that are taken to be there, because this is a
    torch without its dependencies beside it (`bare`: a wheel, or a lib folder alone).
    """

    info: TorchInfo
    lib: str
    modules: tuple[str, ...]
    visible: tuple[str, ...]
    preloaded: tuple[str, ...]
    cuda_folders: tuple[str, ...]
    bare: bool
    assumed: frozenset[str]


def shared_objects(root: Path, *, also: tuple[str, ...] = ()) -> list[str]:
    """Return the paths of all files named like shared objects, or ending in one of `also`; in no order.

    Links to folders are not followed; what lies with bytecode or metadata is none. An environment has 5,000 folders:
    where there are many, a child helps.
    """
    found: list[str] = []
    pending = deque([str(root)])
    while pending and len(pending) < _MANY_FOLDERS:
        found += _scan(pending, also)
    if pending:
        found += itertools.chain(*elsewhere.divided(lambda folder: _walk(folder, also), list(pending), limit_s=_WALK_LIMIT_S))
    return found


def _walk(folder: str, also: tuple[str, ...]) -> list[str]:
    pending, found = deque([folder]), list[str]()
    while pending:
        found += _scan(pending, also)
    return found


def _scan(pending: deque[str], also: tuple[str, ...]) -> list[str]:
    """Look through the first pending folder; add those in it to the end."""
    found = []
    try:
        with os.scandir(pending.popleft()) as entries:
            for entry in entries:  # 65,000 in an environment, nearly all of them files of no interest
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != "__pycache__" and not entry.name.endswith(".dist-info"):
                        pending.append(entry.path)
                    continue
                name = entry.name
                wanted = (".so" in name and SHARED_OBJECT.search(name) is not None) or (also and name.endswith(also))
                if wanted and not entry.is_dir():
                    found.append(entry.path)
    except OSError:
        pass  # a folder that vanished, or may not be read: what is in it cannot be imported either
    return found


def python_tag(path: str) -> str | None:
    """Return "311" for an extension of CPython 3.11, "abi3" for any CPython, "pypy310" and the like; None without a tag."""
    match = _TAGGED.search(path)
    return match["cpython"] or match["stable"] or match["other"] if match else None


def interpreter_of(site_packages: Path, paths: Iterable[str], torch: TorchBuild | None = None) -> str | None:
    """Return the tag ("311") of the interpreter an environment is for: from its path, its torch, or the most frequent."""
    for part in reversed(site_packages.parts):
        if part.startswith("python") and (match := re.fullmatch(r"python(\d)\.(\d+)(t?)", part)):
            return "".join(match.groups())
    if torch and (tag := python_tag(torch.modules[0])) and tag[0].isdigit():
        return tag
    counts = Counter(tag for path in paths if (tag := python_tag(path)) and tag[0].isdigit())
    return max(sorted(counts), key=counts.__getitem__, default=None)


def site_packages_of(path: Path) -> Path:
    """Return the site-packages folder meant by a folder: itself, or that of the virtual environment at it."""
    inside = sorted(path.glob("lib/python3*/site-packages"))
    if len(inside) > 1:
        raise ConfigurationError(
            f"{path} holds several environments", why=", ".join(str(p.relative_to(path)) for p in inside), next="Name one of them."
        )
    return inside[0] if inside else path


def locate_torch(site_packages: Path) -> TorchBuild | None:
    """Return the torch of an environment, or None."""
    lib = site_packages / "torch" / "lib"
    return _build(lib, bare=False) if lib.is_dir() else None


def torch_at(path: Path, *, source: str | None = None) -> TorchBuild:
    """Return the torch meant by a path: an environment, a `torch` folder, a `torch/lib` folder.

    `source`: what to call it, where the path itself says nothing. Raises ConfigurationError if there is none.
    """
    for lib in (site_packages_of(path) / "torch" / "lib", path / "lib", path):
        if (lib / "libc10.so").is_file():
            build = _build(lib, bare=lib.parent.name != "torch" or not (lib.parent.parent / "nvidia").is_dir())
            return build if source is None else replace(build, info=replace(build.info, source=source))
    raise ConfigurationError(
        f"no torch at {path}", why="There is no torch/lib/libc10.so.", next="Name an environment, a torch wheel, or a torch/lib folder."
    )


def among(torch: TorchBuild, site_packages: Path) -> TorchBuild:
    """Return a torch that lies elsewhere as it would be in an environment: with the CUDA libraries that are there, and no others."""
    folders = _cuda_folders(site_packages.absolute())
    preloaded = tuple(_preloaded(folders)) if torch.info.cuda else ()
    return replace(torch, cuda_folders=folders, preloaded=preloaded, bare=False, assumed=frozenset())


def _build(lib: Path, *, bare: bool) -> TorchBuild:
    lib = lib.absolute()
    package = lib.parent
    info = _info(lib)
    libraries = (str(lib / name) for name in TORCH_LIBRARIES if (lib / name).is_file())
    modules = [*[f"{package}/{name}" for name in reading.names(package) if name.startswith("_C.") and name.endswith(".so")][:1], *libraries]
    global_deps = lib / "libtorch_global_deps.so"
    cuda_folders = _cuda_folders(package.parent)
    bare = bare and not cuda_folders
    return TorchBuild(
        info=info,
        lib=str(lib),
        modules=tuple(modules),
        visible=(str(global_deps),) if global_deps.is_file() else (),
        preloaded=tuple(_preloaded(cuda_folders)) if info.cuda else (),
        cuda_folders=cuda_folders,
        bare=bare,
        assumed=assumed_sonames(info.cuda) if bare else frozenset(),
    )


def _cuda_folders(site_packages: Path) -> tuple[str, ...]:
    """Return the folders where NVIDIA's wheels have their libraries."""
    folders = (f"{site_packages}/nvidia/{name}/lib" for name in reading.names(site_packages / "nvidia"))
    return tuple(folder for folder in folders if os.path.isdir(folder))  # noqa: PTH112 - text, as the loader has it


def assumed_sonames(cuda: str | None) -> frozenset[str]:
    """Return the CUDA libraries that a torch loads by path and that none of its libraries names."""
    return frozenset(f"lib{name}.so.{cuda.partition('.')[0]}" for name in _UNNAMED) if cuda else frozenset()


def _preloaded(cuda_folders: Iterable[str]) -> Iterator[str]:
    listings = {folder: reading.names(folder) for folder in cuda_folders}
    for stem in (*_PRELOADED, *_PRELOADED_TOO):
        pattern = re.compile(rf"lib{re.escape(stem)}\.so\..*[0-9]")
        found = (f"{folder}/{name}" for folder, names in listings.items() for name in names if pattern.fullmatch(name))
        path = next(found, None)
        if path is None:
            return  # torch gives up at the first that is absent, in silence
        yield path


def _info(lib: Path) -> TorchInfo:
    build = parse_torch_version(reading.text(lib.parent / "version.py", limit=_MAX_VERSION_FILE))
    if build is None:
        return TorchInfo(version=None, cuda="unknown" if (lib / "libtorch_cuda.so").is_file() else None, source=str(lib))
    return TorchInfo(version=build.version, cuda=build.cuda, source=str(lib.parent))
