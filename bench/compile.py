"""What a source build cost, unit by unit, from the records that its launcher left; and what a repeated one costs.

python bench/compile.py WORKSPACE          # <store>/compile/<key>, or any kept build folder
python bench/compile.py --no-op OUT        # time `envbuilder build --target dgx-spark` where nothing has changed
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from envbuilder.compile.building import read_records
from envbuilder.compile.policy import GIB


def report(workspace: Path) -> None:
    records = [record for record in read_records(workspace) if record["status"] == 0]
    targets = Counter(record["unit"].partition("/")[0] for record in records)
    print(f"{'target':<22} {'units':>5} {'CPU s':>8} {'peak GiB':>9} {'objects MB':>11}")
    for target, count in [*targets.items(), ("all", len(records))]:
        chosen = [record for record in records if target == "all" or record["unit"].startswith(f"{target}/")]
        cpu = sum(record["user"] + record["system"] for record in chosen)
        size = sum(record["object"]["bytes"] for record in chosen) / 1e6
        print(f"{target:<22} {count:>5} {cpu:8.0f} {max(record['peak'] for record in chosen) / GIB:9.1f} {size:11.1f}")
    print("\nlargest in memory:")
    for record in sorted(records, key=lambda record: -record["peak"])[:6]:
        print(f"  {record['peak'] / GIB:5.1f} GiB {record['user'] + record['system']:6.0f} s  {record['unit']}")
    print("longest:")
    for record in sorted(records, key=lambda record: -(record["user"] + record["system"]))[:6]:
        print(f"  {record['peak'] / GIB:5.1f} GiB {record['user'] + record['system']:6.0f} s  {record['unit']}")
    caches = Counter(record["cache"] for record in records)
    print("compiler cache:", ", ".join(f"{name} {count}" for name, count in caches.items()))


def no_op(out: Path) -> None:
    from timing import Contender, measure  # noqa: PLC0415 - beside this file

    launcher = Path(__file__).resolve().parents[1] / "bin" / "envbuilder"
    command = [str(launcher), "build", "--target", "dgx-spark", "--no-image", "--out", str(out)]
    started = time.perf_counter()
    samples = [measure(Contender(name="no-op", command=command)).seconds for _ in range(5)]
    print(f"a build where nothing changed: {min(samples):.2f} to {max(samples):.2f} s over 5 runs ({time.perf_counter() - started:.1f} s)")


# Which GPUs vLLM 0.23.0's CMakeLists.txt compiles these operators' kernels for: none with compute capability 12, so no GB10
# can run them from the published wheel either.
_OTHER_GPUS = {
    "machete": "9.0a",
    "w4a8": "9.0a",
    "cutlass_encode_and_reorder_int4b": "9.0a",
    "cutlass_pack_scale_fp8": "9.0a",
    "allspark": "8.0, 8.6, 8.7, 8.9",
    "rearrange_kn_weight": "8.0, 8.6, 8.7, 8.9",
    "mxfp4": "10.0f, 11.0f",
    "dsv3": "9.0a, 10.0f, 11.0f",
    "fp32_router_gemm": "9.0a, 10.0f, 11.0f",
}


def record(out: Path, workspace: Path, published: Path, ours: Path) -> None:
    document = json.loads((out / "compile.json").read_bytes())
    measured = {row["unit"]: row for row in read_records(workspace)}
    keys = ("seconds", "user", "system", "waited", "peak", "cache")
    document["units"] = [{**unit, **{key: measured[unit["unit"]][key] for key in keys}} for unit in document["units"]]
    theirs, own = (json.loads(path.read_bytes()) for path in (published, ours))
    document["loaded"] = {
        "torch": own["torch"],
        "vllm": own.get("vllm"),
        "extensions": {path: result.get("error", "loads") for path, result in own["extensions"].items()},
    }
    document["operators"] = {
        "ours": _operators(own),
        "published": _operators(theirs),
        "missing": {name: _why(name, found, document["components"]) for name, found in _missing(theirs, own).items()},
    }
    print(json.dumps(document, indent=1))


def _operators(listing: dict[str, Any]) -> dict[str, int]:
    return {path: len(result.get("operators", ())) for path, result in listing["extensions"].items()}


def _missing(theirs: dict[str, Any], own: dict[str, Any]) -> dict[str, tuple[str, list[str]]]:
    """Return each operator that ours has not, or has without a kernel: the extension that had it, and the lost kernels (none: all)."""
    here = {name: kernels for result in own["extensions"].values() for name, kernels in result.get("operators", {}).items()}
    missing: dict[str, tuple[str, list[str]]] = {}
    for path, result in theirs["extensions"].items():
        for name, kernels in result.get("operators", {}).items():
            if name not in here:
                missing[name] = path, []
            elif lost := sorted(set(kernels) - set(here[name])):
                missing[name] = path, lost
    return missing


def _why(name: str, found: tuple[str, list[str]], components: list[dict[str, str]]) -> str:
    path, lost = found
    if lost:
        archs = [archs for part, archs in _OTHER_GPUS.items() if part in name]
        return (
            f"{path}: no kernel; vLLM compiles it for {archs[0]} alone"
            if archs
            else f"{path}: no kernel for {', '.join(lost)}, unexplained"
        )
    part = next((it for it in components if it["how"] == "omitted" and it["name"] in name.replace("_vllm_", "")), None)
    return f"{path}: {part['name']} is left out: {part['reason']}" if part else f"{path}: not registered, unexplained"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--no-op", place]:
            no_op(Path(place))
        case ["--record", *places] if len(places) == 4:
            record(*map(Path, places))
        case [place]:
            report(Path(place))
        case _:
            sys.exit(__doc__)
