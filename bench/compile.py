"""What a source build cost, unit by unit, from the records that its launcher left; and what a repeated one costs.

python bench/compile.py WORKSPACE          # <store>/compile/<key>, or any kept build folder
python bench/compile.py --no-op OUT        # time `envbuilder build --target dgx-spark` where nothing has changed
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

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


if __name__ == "__main__":
    no_op(Path(sys.argv[2])) if sys.argv[1] == "--no-op" else report(Path(sys.argv[1]))
