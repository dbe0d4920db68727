"""Measure the memory bandwidth that decoding lives on: matrices times one vector. Measures, judges nothing.

Runs under an environment with torch: `python bandwidth.py FOLDER/request.json`. The request names `device` ("cuda" or
"cpu"); the folder gets `result.json`. To decode a token every weight is read once and used once, so the time is the
weights' bytes over the bandwidth. The matrices together are many times larger than any cache and are read in turn, as a
model's layers are; each is as large as a big model's, so that starting a kernel weighs nothing.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

# Type, rows, columns, matrices, passes. GPU: 8 x 268 MB, 35 times the L2 of an H200 (60 MB); a GB10 needs 8 ms a pass.
# A CPU without bf16 instructions would be bound by arithmetic, not by memory: there it is float32.
_SIZES = {"cuda": ("bfloat16", 16384, 8192, 8, 15), "cpu": ("float32", 4096, 8192, 4, 5)}
_WARM_UP = 3


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    out = Path(sys.argv[1]).absolute().parent
    import torch

    device = request["device"]
    kind, rows, columns, matrices, passes = _SIZES[device]
    dtype = getattr(torch, kind)
    torch.manual_seed(0)
    # Random numbers, not zeros: a GPU moves those with less power, and faster.
    layers = [torch.randn(rows, columns, device=device, dtype=dtype) for _ in range(matrices)]
    vector = torch.randn(1, columns, device=device, dtype=dtype)
    read = matrices * (rows * columns + columns + rows) * dtype.itemsize  # bytes: each matrix, the vector, and what is written

    def work() -> None:
        for layer in layers:
            torch.nn.functional.linear(vector, layer)

    with torch.no_grad():
        seconds = timed(work, device=device, passes=passes)
        right = is_right(layers[-1], vector)
    rates = [read / each / 1e9 for each in seconds]
    result = {
        "device": device,
        "name": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "dtype": kind,
        "gb_per_s": round(statistics.median(rates), 1),
        "lowest": round(min(rates), 1),
        "highest": round(max(rates), 1),
        "passes": passes,
        "bytes_of_a_pass": read,
        "right": right,
    }
    temporary = out / ".result.json"
    temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")
    temporary.replace(out / "result.json")


def timed(work: Callable[[], None], *, device: str, passes: int) -> list[float]:
    """Return the seconds of each pass, by the GPU's own events where there is one."""
    import torch

    for _ in range(_WARM_UP):
        work()
    seconds = []
    for _ in range(passes):
        if device == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            work()
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1e3)
        else:
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
    return seconds


def is_right(layer: torch.Tensor, vector: torch.Tensor) -> bool:
    """Whether a product is what float64 says, in its first rows: speed of a wrong product is worth nothing."""
    import torch

    found = torch.nn.functional.linear(vector, layer)[0, :256].double()
    expected = layer[:256].double() @ vector[0].double()
    return bool((found - expected).norm() < 0.01 * expected.norm())


if __name__ == "__main__":
    main()
