"""Builds a few of vLLM 0.23.0's kernels for an x86_64 machine with a given GPU, by the code that builds vLLM for a DGX Spark.

`kernels.py --arch 9.0 --out DIR [--work DIR] [--jobs N]`

The same workspace, CUDA home, CMake configuration, compile launcher and admission to memory; only the arch, the machine
and which units are linked differ. vLLM's two files of operator registrations are replaced by our own (bindings_*.cpp),
which name just the operators that are built, and Marlin's generated choice of kernels is cut down to NVFP4 in bf16.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from envbuilder.compile import isolation  # noqa: E402
from envbuilder.compile.building import Build, known_units, read_records  # noqa: E402
from envbuilder.compile.toolchain import find_compilers  # noqa: E402
from envbuilder.compile.workspace import Inputs, Workspace, write_if_other  # noqa: E402
from envbuilder.console import Console  # noqa: E402
from envbuilder.files import write_json  # noqa: E402
from envbuilder.locking.model import read_lock  # noqa: E402
from envbuilder.store.cache import Store, Wanted, default_root  # noqa: E402
from envbuilder.store.fetch import fetch  # noqa: E402
from envbuilder.store.settings import read_settings  # noqa: E402
from envbuilder.targets.catalogue import find_target  # noqa: E402
from envbuilder.targets.model import Edit  # noqa: E402

if TYPE_CHECKING:
    from envbuilder.targets.model import Compile

ROOT = HERE.parents[1]
MACHINE, PYTHON, RELEASE = "x86_64", "3.12.3", "0.23.0"
_SELECTOR = "csrc/quantization/marlin/kernel_selector.h"
_KEPT = ("a_type == vllm::kBFloat16 ", "b_type == vllm::kFE2M1f ", "c_type == vllm::kBFloat16 ")


@dataclass(frozen=True)
class Library:
    """One library: CMake's target, where its registrations belong, our own ones, and its units below csrc/."""

    name: str
    target: str
    registrations: str
    binding: str
    units: tuple[str, ...]


LIBRARIES = (
    Library(
        name="vllm_stable",
        target="_C_stable_libtorch",
        registrations="libtorch_stable/torch_bindings.cpp",
        binding="bindings_stable.cpp",
        units=(
            "libtorch_stable/activation_kernels.cu",
            "libtorch_stable/layernorm_kernels.cu",
            "libtorch_stable/quantization/w8a8/fp8/common.cu",
            "libtorch_stable/quantization/w8a8/int8/scaled_quant.cu",
        ),
    ),
    Library(
        name="vllm_marlin",
        target="_C",
        registrations="torch_bindings.cpp",
        binding="bindings_marlin.cpp",
        units=(
            "quantization/marlin/marlin.cu",
            "quantization/marlin/gptq_marlin_repack.cu",
            "quantization/marlin/sm80_kernel_bfloat16_fe2m1f_bfloat16.cu",
        ),
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="9.0", help="the GPU, as TORCH_CUDA_ARCH_LIST names it (default: %(default)s, an H100 or H200)")
    parser.add_argument("--out", type=Path, required=True, help="the folder that gets the libraries and kernels.json")
    parser.add_argument("--work", type=Path, help="the workspace, kept between calls (default: in the store)")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    started = time.monotonic()
    spec = spec_for(arguments.arch)
    inputs = get_inputs(spec)
    place = Workspace((arguments.work or default_root() / "compile" / f"gpu-{arguments.arch}").absolute())
    place.root.mkdir(parents=True, exist_ok=True)
    made = build(place, spec, inputs, jobs=arguments.jobs, out=arguments.out.absolute())
    made["seconds"] = round(time.monotonic() - started, 1)
    write_json(arguments.out / "kernels.json", made)
    print(json.dumps(made, indent=1))
    return 0


def spec_for(arch: str) -> Compile:
    """Return the DGX Spark's way of compiling for another GPU.

    marlin.cu's list of archs stops at 8.0 with PTX: on Hopper its little device code would be compiled at first use.
    Machete, for Hopper alone, needs sources that its generator makes.
    """
    found, _ = find_target("dgx-spark")
    spec = found.releases[RELEASE].compile
    assert spec is not None
    edits = (
        Edit(
            name="marlin-other-archs-for-hopper",
            path="CMakeLists.txt",
            find='MARLIN_OTHER_ARCHS "7.5;8.0+PTX;12.0f"',
            replace=f'MARLIN_OTHER_ARCHS "7.5;8.0+PTX;{arch};12.0f"',
            reason="native code for the GPU that this is tried on",
        ),
        Edit(
            name="no-machete",
            path="CMakeLists.txt",
            find='cuda_archs_loose_intersection(MACHETE_ARCHS "9.0a" "${CUDA_ARCHS}")',
            replace="set(MACHETE_ARCHS)",
            reason="its sources are generated by CUTLASS's Python part, which no DGX Spark needs and no wheel of ours carries",
        ),
    )
    return spec.model_copy(update={"arch": arch, "edits": (*spec.edits, *edits)})


def get_inputs(spec: Compile) -> Inputs:
    """Bring the locked wheels into the store: CUDA and torch for x86_64 of target cuda's lock, the tools of dgx-spark's."""
    store = Store(default_root())
    libraries = [
        wheel
        for wheel in read_lock(ROOT / "lockfiles" / "cuda" / RELEASE).wheels("serve", PYTHON, MACHINE)
        if wheel.name == "torch" or wheel.name in spec.cuda
    ]
    tools = read_lock(ROOT / "lockfiles" / "dgx-spark" / RELEASE).build_wheels(platform.python_version(), "x86_64")
    wanted = [Wanted(project=it.name, filename=it.file.filename, sha256=it.file.sha256, size=it.file.size) for it in (*libraries, *tools)]
    sdist = spec.sdist
    wanted.append(Wanted(project="vllm", filename=sdist.filename, sha256=sdist.sha256, size=sdist.size))
    fetch(wanted, store=store, settings=read_settings(), console=Console())
    return Inputs(
        spec=spec,
        sources={"vllm": store.path(sdist.sha256, sdist.filename)},
        tools={it.name: store.path(it.file.sha256, it.file.filename) for it in tools},
        libraries={it.name: store.path(it.file.sha256, it.file.filename) for it in libraries},
    )


def build(place: Workspace, spec: Compile, inputs: Inputs, *, jobs: int, out: Path) -> dict[str, object]:
    """Configure, compile the units, and link them. Returns what kernels.json says."""
    log = place.root / "build.log"
    compilers = find_compilers(MACHINE, here=platform.machine())
    chosen = isolation.choose(place.root, log=log)
    place.make(inputs, compilers, inside=chosen.root)
    known = known_units(ROOT / "envbuilder/compile/known_units.json", read_records(place.root))
    one = Build(workspace=place, isolation=chosen, compilers=compilers, spec=spec, jobs=jobs, known=known, log=log)
    one.configure()
    narrow(place.root / "src" / _SELECTOR)
    for library in LIBRARIES:
        write_if_other(place.root / "src/csrc" / library.registrations, (HERE / library.binding).read_text(encoding="utf-8"))
    objects = {
        library.name: [f"CMakeFiles/{library.target}.dir/csrc/{unit}.o" for unit in (library.registrations, *library.units)]
        for library in LIBRARIES
    }
    one.run([goal for goals in objects.values() for goal in goals])
    out.mkdir(parents=True, exist_ok=True)
    for name, goals in objects.items():
        link(one, name, goals)
        shutil.copyfile(place.root / "obj" / f"{name}.so", out / f"{name}.so")
    goals = {goal.removeprefix("CMakeFiles/").replace(".dir/", "/", 1).removesuffix(".o") for some in objects.values() for goal in some}
    return {
        "vllm": RELEASE,
        "arch": spec.arch,
        "machine": MACHINE,
        "torch": inputs.libraries["torch"].name,
        "isolation": isolation.describe(chosen),
        "compilers": compilers.identity,
        "units": [
            {key: record[key] for key in ("unit", "seconds", "peak", "archs", "object")}
            for record in read_records(place.root)
            if record["status"] == 0 and record["unit"] in goals
        ],
    }


def narrow(selector: Path) -> None:
    """Keep of Marlin's generated list of kernels those for NVFP4 weights in bf16, whose unit is the one that is built."""
    lines = selector.read_text(encoding="utf-8").splitlines()
    pairs = [(line, lines[at + 1]) for at, line in enumerate(lines) if "if (a_type ==" in line and all(word in line for word in _KEPT)]
    if not pairs:
        sys.exit(f"{selector}: no kernel for NVFP4 in bf16 (another vLLM?)")
    chain = [
        f"{'if' if number == 0 else 'else if'} {condition[condition.index('(') :]}\n{choice}"
        for number, (condition, choice) in enumerate(pairs)
    ]
    write_if_other(selector, "\n".join(chain) + "\n")


def link(one: Build, name: str, objects: list[str]) -> None:
    root = one.isolation.root
    torch = root / "torch/torch/lib"
    command: list[str | Path] = [one.compilers.cxx, "-shared", "-Wl,--as-needed", "-Wl,-s", "-o", root / "obj" / f"{name}.so"]
    command += [root / "obj" / goal for goal in objects]
    command += [f"-L{torch}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-ltorch_cuda", "-Wl,--as-needed", "-lc10_cuda", "-lc10"]
    command += [root / "cuda/lib/libcudart.so"]
    one.isolation.run(command, variables=one.variables(), log=one.log, what=f"linking {name}")


if __name__ == "__main__":
    sys.exit(main())
