"""vLLM's kernels that were built elsewhere for this GPU: loaded under this machine's torch, and compared with float64."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import NotRunError, report

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

_ULP = 2.0**-8  # of bf16: half a unit in the last place, relative
_POISON = float("nan")


def main() -> None:
    this = report()
    folder = Path(this.request["carry"]) / "kernels"
    with this.check("the libraries load") as figures:
        figures.update(load(folder, gpu=this.gpu))
    loaded = this.checks[-1]["status"] == "passed"
    for name, check in CHECKS.items():
        with this.check(name) as figures:
            this.require_gpu()
            if not loaded:
                raise NotRunError("the libraries did not load")
            check(figures)


def load(folder: Path, *, gpu: bool) -> dict[str, Any]:
    if not (folder / "kernels.json").exists():
        raise NotRunError("no libraries were carried")
    made = json.loads((folder / "kernels.json").read_text(encoding="utf-8"))
    figures = {key: made[key] for key in ("vllm", "arch", "torch", "compilers", "isolation", "units")}
    if not gpu:
        raise NotRunError("no GPU here, and a torch without CUDA does not load them")
    import torch

    torch.manual_seed(20260511)
    started = time.monotonic()
    for path in sorted(folder.glob("*.so")):
        torch.ops.load_library(path)
    figures["milliseconds"] = round(1000 * (time.monotonic() - started))
    return figures


# -- comparing ---------------------------------------------------------------------------------------------------


def compare(figures: dict[str, Any], found: torch.Tensor, expected: torch.Tensor, *, most: float) -> None:
    """Compare with float64: `most` is the greatest relative error of an element, taken against the mean size where it is near 0."""
    import torch

    found, expected = found.double(), expected.double()
    assert bool(torch.isfinite(found).all()), "not every element was written, or not with a number"
    floor = 0.01 * expected.abs().mean()
    relative = (found - expected).abs() / expected.abs().clamp(min=floor)
    figures["relative_norm"] = float(f"{float((found - expected).norm() / expected.norm()):.3g}")
    figures["max_relative"] = float(f"{float(relative.max()):.3g}")
    figures["max_absolute"] = float(f"{float((found - expected).abs().max()):.3g}")
    figures["most"] = most
    assert figures["max_relative"] <= most, f"an element is {figures['max_relative']} off, more than {most}"


def milliseconds(work: Callable[[], object], *, repetitions: int = 20) -> float:
    import torch

    for _ in range(3):
        work()
    times = []
    for _ in range(repetitions):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def bf16(*shape: int) -> torch.Tensor:
    import torch

    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


# -- the kernels -------------------------------------------------------------------------------------------------


def silu_and_mul(figures: dict[str, Any]) -> None:
    import torch

    for tokens, width in ((1, 512), (7, 1016), (4096, 14336)):
        x = bf16(tokens, 2 * width)
        out = torch.full((tokens, width), _POISON, device="cuda", dtype=torch.bfloat16)
        torch.ops._C.silu_and_mul(out, x)
        gate, up = x.double().chunk(2, dim=-1)
        compare(figures.setdefault(f"{tokens} x {width}", {}), out, gate * torch.sigmoid(gate) * up, most=4 * _ULP)
    figures["gb_per_s"] = round((x.nbytes + out.nbytes) / milliseconds(lambda: torch.ops._C.silu_and_mul(out, x)) / 1e6)


def gelu_tanh_and_mul(figures: dict[str, Any]) -> None:
    import torch

    x = bf16(1024, 2 * 8192)
    out = torch.full((1024, 8192), _POISON, device="cuda", dtype=torch.bfloat16)
    torch.ops._C.gelu_tanh_and_mul(out, x)
    gate, up = x.double().chunk(2, dim=-1)
    # Far to the left tanh cancels against 1, in float32 too: those values are next to nothing.
    compare(figures, out, torch.nn.functional.gelu(gate, approximate="tanh") * up, most=16 * _ULP)


def rms_norm(figures: dict[str, Any]) -> None:
    import torch

    for tokens, width in ((1, 256), (33, 5376), (4096, 8192)):
        x, weight = bf16(tokens, width), bf16(width)
        out = torch.full_like(x, _POISON)
        torch.ops._C.rms_norm(out, x, weight, 1e-6)
        compare(figures.setdefault(f"{tokens} x {width}", {}), out, normed(x.double(), weight), most=4 * _ULP)
    figures["gb_per_s"] = round((x.nbytes + out.nbytes) / milliseconds(lambda: torch.ops._C.rms_norm(out, x, weight, 1e-6)) / 1e6)


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * weight.double()


def fused_add_rms_norm(figures: dict[str, Any]) -> None:
    import torch

    x, residual, weight = bf16(512, 4096), bf16(512, 4096), bf16(4096)
    total = x.double() + residual.double()
    torch.ops._C.fused_add_rms_norm(x, residual, weight, 1e-6)
    compare(figures.setdefault("residual", {}), residual, total, most=2 * _ULP)
    # Whether the sum is rounded to bf16 before it is normed is the kernel's own affair: one rounding more.
    compare(figures.setdefault("normed", {}), x, normed(total, weight), most=6 * _ULP)


def fp8_per_token(figures: dict[str, Any]) -> None:
    import torch

    x = bf16(1024, 4096) * torch.logspace(-2, 2, 1024, device="cuda", dtype=torch.bfloat16)[:, None]
    out = torch.full((1024, 4096), _POISON, device="cuda").to(torch.float8_e4m3fn)
    scale = torch.full((1024, 1), _POISON, device="cuda")
    torch.ops._C.dynamic_per_token_scaled_fp8_quant(out, x, scale, None)
    compare(figures.setdefault("scale", {}), scale, x.double().abs().amax(-1, keepdim=True) / 448, most=1e-5)
    rounding(figures, out, scale, x)


def fp8_per_tensor(figures: dict[str, Any]) -> None:
    import torch

    x = bf16(512, 4096)
    out = torch.full((512, 4096), _POISON, device="cuda").to(torch.float8_e4m3fn)
    scale = torch.zeros(1, device="cuda")
    torch.ops._C.dynamic_scaled_fp8_quant(out, x, scale)
    compare(figures.setdefault("scale", {}), scale, x.double().abs().max().reshape(1) / 448, most=1e-5)
    rounding(figures, out, scale, x)


def rounding(figures: dict[str, Any], out: torch.Tensor, scale: torch.Tensor, x: torch.Tensor) -> None:
    """Each number must be rounded to a neighbour in E4M3: 2^-4 of itself, or half of the smallest step, 2^-10 of the scale."""
    import torch

    meant, wanted = out.double() * scale.double(), x.double()
    allowed = torch.maximum(wanted.abs() * 2.0**-4, scale.double() * 2.0**-10)
    share = float(((meant - wanted).abs() / allowed).max())
    figures["rounding"] = {"of_allowed": round(share, 4), "relative_norm": float(f"{float((meant - wanted).norm() / wanted.norm()):.3g}")}
    assert share <= 1.01, f"a number was rounded by {share} of what its format allows"


def int8_per_token(figures: dict[str, Any]) -> None:
    import torch

    x = bf16(1024, 4096)
    out = torch.full((1024, 4096), -128, device="cuda", dtype=torch.int8)
    scale = torch.full((1024, 1), _POISON, device="cuda")
    torch.ops._C.dynamic_scaled_int8_quant(out, x, scale, None)
    compare(figures.setdefault("scale", {}), scale, x.double().abs().amax(-1, keepdim=True) / 127, most=1e-5)
    share = float(((out.double() * scale.double() - x.double()).abs() / (scale.double() / 2)).max())
    figures["of_half_a_step"] = round(share, 4)
    assert share <= 1.01


def fp8_matmul(figures: dict[str, Any]) -> None:
    """The FP8 quantization of vLLM in front of the GPU's FP8 tensor cores: the product is that of the rounded numbers."""
    import torch

    x, weight = bf16(64, 4096), bf16(2048, 4096)
    quantized = [per_token_fp8(one) for one in (x, weight)]
    (a, a_scale), (b, b_scale) = quantized
    out = torch._scaled_mm(a, b.t(), scale_a=a_scale, scale_b=b_scale.t(), out_dtype=torch.bfloat16)
    rounded = (a.double() * a_scale.double()) @ (b.double() * b_scale.double()).t()
    figures["against the bf16 numbers"] = float(f"{float((out.double() - x.double() @ weight.double().t()).norm() / rounded.norm()):.3g}")
    norm = float((out.double() - rounded).norm() / rounded.norm())
    figures["relative_norm"] = float(f"{norm:.3g}")
    assert norm < 4e-3, "more than bf16's rounding and the tensor core's sums explain"


def per_token_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    out = torch.empty(x.shape, device="cuda", dtype=torch.float8_e4m3fn)
    scale = torch.empty(x.shape[0], 1, device="cuda")
    torch.ops._C.dynamic_per_token_scaled_fp8_quant(out, x, scale, None)
    return out, scale


def marlin_nvfp4(figures: dict[str, Any]) -> None:
    """The kernel by which a DGX Spark decodes NVFP4A16: weights of four bits, activations in bf16."""
    import torch
    from marlin import MarlinLinear, dequantized, random_weight

    for tokens, rows, columns in ((1, 256, 256), (1, 8192, 4096), (17, 512, 2048), (256, 4096, 8192)):
        weight = random_weight(rows, columns, "cuda")
        layer, x = MarlinLinear(*weight), bf16(tokens, columns)
        found, expected = layer(x).double(), x.double() @ dequantized(*weight).t()
        assert bool(torch.isfinite(found).all())
        norm = float((found - expected).norm() / expected.norm())
        figures[f"{tokens} x {rows} x {columns}"] = float(f"{norm:.3g}")
        assert norm < 4e-3, f"{norm} off, more than bf16's rounding explains"


def marlin_speed(figures: dict[str, Any]) -> None:
    """One token through eight layers that the cache cannot hold together: what decoding is bound by."""
    from marlin import MarlinLinear, random_weight

    layers = [MarlinLinear(*random_weight(16384, 8192, "cuda")) for _ in range(8)]
    x = bf16(1, 8192)
    read = sum(layer.words.nbytes + layer.scale.nbytes for layer in layers)
    time_ms = milliseconds(lambda: [layer(x) for layer in layers])
    figures.update(bytes=read, milliseconds=round(time_ms, 4), gb_per_s=round(read / time_ms / 1e6))


CHECKS = {
    "silu_and_mul against float64": silu_and_mul,
    "gelu_tanh_and_mul against float64": gelu_tanh_and_mul,
    "rms_norm against float64": rms_norm,
    "fused_add_rms_norm against float64": fused_add_rms_norm,
    "FP8 quantization per token against the format": fp8_per_token,
    "FP8 quantization per tensor against the format": fp8_per_tensor,
    "INT8 quantization per token against the format": int8_per_token,
    "FP8 quantization, then the FP8 tensor cores": fp8_matmul,
    "Marlin NVFP4A16 against float64": marlin_nvfp4,
    "Marlin NVFP4A16: bytes per second at one token": marlin_speed,
}

if __name__ == "__main__":
    main()
