"""The folder that a source build lives in, kept between builds: each part is made once for its inputs.

src/      vLLM's build files and C++ sources, edited        cuda/    the CUDA home
torch/    headers, libraries and CMake files of torch       deps/    headers that CMake would fetch
tools/    CMake, ninja and jinja2                           python/  what stands in for `import torch`
obj/      CMake's and ninja's own                           records/ one file for each unit compiled
"""

from __future__ import annotations

import ast
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from envbuilder.compile.sources import COMPILED, edited, pins_of, read_source, require_pin, synchronize, tree_hash
from envbuilder.compile.toolchain import make_cuda_home, toolchain_file
from envbuilder.compile.wheels import below, unpack, unpack_source, whole
from envbuilder.errors import HashMismatchError, VerificationError
from envbuilder.files import digest_of, remove_tree, write_atomic, write_json
from envbuilder.turns import alone

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from typing import Any

    from envbuilder.compile.sources import Pin
    from envbuilder.compile.toolchain import Compilers
    from envbuilder.console import Console
    from envbuilder.targets.model import Compile

_CUDA_REVISION = 2  # raised when a CUDA home comes to be made otherwise
_LAUNCHER = Path(__file__).resolve().parent / "inside" / "launcher.py"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """All files that a build is made from, each proved by its hash when it came into the store.

    `sources` are archives by name: "vllm", and the trees that come from git. `tools` and `libraries` are wheels by
    distribution: for the machine that builds (the lock's build.txt), and for the one that is built for.
    """

    spec: Compile
    sources: Mapping[str, Path]
    tools: Mapping[str, Path]
    libraries: Mapping[str, Path]
    commit: str = ""  # where vLLM's source is one


@dataclass(frozen=True)
class Workspace:
    """The parts of a workspace at `root`."""

    root: Path

    def make(self, inputs: Inputs, compilers: Compilers, *, inside: Path) -> tuple[Pin, ...]:
        """Make all parts that are not there yet for these inputs; return what vLLM's build files would fetch.

        `inside` is the workspace's path as the compile sees it. Raises EditError, HashMismatchError, VerificationError.
        """
        spec = inputs.spec
        tool_wheels = {name: path for name, path in inputs.tools.items() if name in {"cmake", "ninja", "jinja2", "markupsafe"}}
        cuda_tools = {name: path for name, path in inputs.tools.items() if name.startswith("nvidia-") and name != "nvidia-cutlass"}
        cuda_libraries = {name: inputs.libraries[name] for name in spec.cuda}
        source = edited(read_source(inputs.sources["vllm"], prefixes=COMPILED), spec.edits)
        self._part("tools", _hashes(tool_wheels), lambda path: _unpack_tools(path, tool_wheels))
        self._part(
            "cuda",
            [_CUDA_REVISION, _hashes(cuda_tools), _hashes(cuda_libraries), compilers.identity],
            lambda path: make_cuda_home(path, tools=cuda_tools, libraries=cuda_libraries, compilers=compilers),
        )
        torch = _hashes({"torch": inputs.libraries["torch"]})
        self._part("torch", torch, lambda path: _unpack_torch(path, inputs.libraries["torch"]))
        self._part(
            "deps",
            [[tree.model_dump(exclude_none=True) for tree in spec.trees], _hashes({**inputs.tools, **_trees(inputs)})],
            lambda path: _unpack_trees(path, inputs),
        )
        self._part("python", [torch, str(inside)], lambda path: _stand_in_for_torch(path, self.root / "torch", inside))
        pins = pins_of(source)
        for tree in spec.trees:
            if tree.pin:
                require_pin(pins, tree.name, tree.pin)
        synchronize(source, self.root / "src")
        # CMake keeps the paths it was configured with: seen from elsewhere, its folder is of no use.
        self._part("obj", [str(inside), str(sys.base_prefix), compilers.identity, spec.arch, _hashes(inputs.tools)], lambda _: None)
        for name in ("run", "records", "tmp"):
            (self.root / name).mkdir(exist_ok=True)
        write_if_other(self.root / "toolchain.cmake", toolchain_file(compilers, cuda=inside / "cuda"))
        write_if_other(self.root / "launcher.py", _LAUNCHER.read_text(encoding="utf-8"))
        return pins

    def _part(self, name: str, inputs: Any, make: Callable[[Path], None]) -> None:  # noqa: ANN401 - whatever JSON can hold
        """Make one part under another name, unless it is there for the same inputs."""
        stamp, goal, key = self.root / f"{name}.json", self.root / name, digest_of([1, inputs])
        try:
            if json.loads(stamp.read_bytes()) == key and goal.is_dir():
                return
        except (OSError, ValueError):
            pass  # not there yet, or left half written
        remove_tree(stamp)
        remove_tree(goal)
        fresh = self.root / f".{name}.new"
        remove_tree(fresh)
        fresh.mkdir(parents=True)
        make(fresh)
        fresh.replace(goal)
        write_json(stamp, key)

    @property
    def cmake(self) -> Path:
        return Path("tools/cmake/data/bin/cmake")

    @property
    def ninja(self) -> Path:
        return Path("tools/bin/ninja")


def _hashes(wheels: Mapping[str, Path]) -> list[str]:
    """Return the wheels' hashes, by which they lie in the store: the store itself may be moved."""
    return sorted(path.parent.name for path in wheels.values())


def write_if_other(path: Path, text: str) -> None:
    """Write a file only if it says something else: its time decides what is built again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text)


def _unpack_tools(goal: Path, wheels: Mapping[str, Path]) -> None:
    for name, wheel in wheels.items():
        if name == "ninja":
            count = unpack(wheel, goal, lambda entry: "bin/ninja" if entry.endswith(".data/scripts/ninja") else None)
        else:
            count = unpack(wheel, goal, lambda entry: None if entry.endswith((".dist-info/RECORD", "/bin/ctest", "/bin/cpack")) else entry)
        if not count:
            raise VerificationError(
                f"{wheel.name} does not hold what it should", next="Please report this: the wheel's layout has changed."
            )


def _unpack_torch(goal: Path, wheel: Path) -> None:
    """Headers, CMake files, and the libraries that are linked; not Python's part, nor what only torch itself loads."""
    unpack(wheel, goal, whole("torch/include/", "torch/share/cmake/"))
    unpack(wheel, goal, whole("torch/version.py", "torch/utils/cpp_extension.py"))
    unpack(wheel, goal, lambda name: name if name.startswith(("torch/lib/libtorch", "torch/lib/libc10", "torch/lib/libshm.so")) else None)


def _unpack_trees(goal: Path, inputs: Inputs) -> None:
    for tree in inputs.spec.trees:
        folder, whence = goal / tree.goal, inputs.sources[tree.name] if tree.git else inputs.tools[tree.distribution]
        prefix = tree.path.rstrip("/") + "/" if tree.path else ""
        if tree.git:
            unpack_source(whence, folder, below(prefix))
        else:
            unpack(whence, folder, below(prefix))
        found = tree_hash(folder)
        if tree.sha256 and found != tree.sha256:
            raise HashMismatchError(
                f"the source tree {tree.name} is not the one that the target names",
                why=f"{tree.path or 'all'} of {whence.name} has the tree hash {found}, the target says {tree.sha256}.",
                next="Look at what changed before you change the hash.",
            )


def _trees(inputs: Inputs) -> dict[str, Path]:
    """Return the archives that trees are taken from."""
    return {tree.name: inputs.sources[tree.name] for tree in inputs.spec.trees if tree.git}


def _stand_in_for_torch(goal: Path, torch: Path, inside: Path) -> None:
    """Write a `torch` that answers what vLLM's CMake files ask Python, from torch's files: the real one need not run here."""
    flags = constant(torch / "torch/utils/cpp_extension.py", "COMMON_NVCC_FLAGS")
    package = goal / "torch" / "utils"
    package.mkdir(parents=True)
    (goal / "torch/__init__.py").write_text("from __future__ import annotations\n\nfrom torch import utils\n", encoding="utf-8")
    (package / "__init__.py").write_text(f"cmake_prefix_path = {str(inside / 'torch/torch/share/cmake')!r}\n", encoding="utf-8")
    (package / "cpp_extension.py").write_text(f"COMMON_NVCC_FLAGS = {flags!r}\n", encoding="utf-8")


def constant(path: Path, name: str) -> Any:  # noqa: ANN401 - whatever a literal can be
    """Return a module-level constant of a Python file without running it."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                return ast.literal_eval(value)
            case ast.AnnAssign(target=ast.Name(id=found), value=value) if found == name and value is not None:
                return ast.literal_eval(value)
    raise VerificationError(f"{path.name} has no constant {name}", next="Please report this: torch's layout has changed.")


def held(root: Path, console: Console) -> AbstractContextManager[None]:
    """Hold a workspace for this process: builds into several folders share one. Its lock lies beside it, where `cache gc` looks."""
    return alone(root.with_name(f"{root.name}.lock"), console, f"another build is compiling in {root}")
