"""NVFP4 weights as vLLM's Marlin kernel takes them, and the numbers that they mean.

The layout's facts are vLLM 0.23.0's (marlin_utils_fp4.py): the packed words are repacked by the kernel's own operator;
scales are permuted within 64 columns, and then the second and third of every four exchanged; a scale is stored in eight
bits without a sign and with one more bit of exponent (S0E5M3), for which it is multiplied by 2^7 and, as far as it fits,
by a power of two that the global scale takes back; the global scale carries what bf16's exponent has over E2M1's.
"""

from __future__ import annotations

import math

import torch

GROUP = 16  # weights that share one fp8 scale
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FLOAT4_E2M1 = 2 | 1 << 8 | 1 << 16 | 1 << 49  # vLLM's ScalarType: exponent 2, mantissa 1, signed, finite only
_COLUMNS = [start + 8 * step for start in range(8) for step in range(8)]
_LARGEST = 448 * 2**7
_BIAS = 2**7 - 2 - 7


class MarlinLinear(torch.nn.Module):
    """A linear layer without bias whose weight stays NVFP4: packed uint8 (rows, columns / 2), scale e4m3 (rows, columns / 16).

    `divisor` is the checkpoint's global scale, by which the scales are to be divided.
    """

    def __init__(self, packed: torch.Tensor, scale: torch.Tensor, divisor: torch.Tensor) -> None:
        super().__init__()
        self.rows, self.columns = packed.shape[0], packed.shape[1] * 2
        words = packed.view(torch.int32).T.contiguous()
        nothing = torch.empty(0, dtype=torch.int32, device=packed.device)
        self.words = torch.ops._C.gptq_marlin_repack(words, nothing, self.columns, self.rows, 4, False)
        self.scale, factor = marlin_scales(scale)
        self.factor = (2.0**_BIAS / (divisor.float().reshape(1) * factor)).contiguous()
        self.workspace = torch.zeros(
            torch.cuda.get_device_properties(packed.device).multi_processor_count, dtype=torch.int32, device=packed.device
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, self.columns)
        out = torch.ops._C.marlin_gemm(
            flat, None, self.words, None, self.scale, None, self.factor, None, None, None, self.workspace, _FLOAT4_E2M1,
            flat.shape[0], self.rows, self.columns, True, False, True, False,
        )  # fmt: skip
        return out.reshape(*x.shape[:-1], self.rows)


def marlin_scales(scale: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the scales (e4m3, rows x groups) as Marlin stores them (groups x rows), and the power of two they were multiplied by."""
    groups, rows = scale.shape[1], scale.shape[0]
    values = scale.T.contiguous().to(torch.half).reshape(-1, 64)[:, _COLUMNS].reshape(-1, 4)[:, [0, 2, 1, 3]].reshape(groups, rows)
    largest = float(values.max()) * 2**7
    factor = 2.0 ** math.floor(math.log2(_LARGEST / largest)) if 0 < largest < _LARGEST else 1.0
    scaled = (values.float() * factor).to(torch.half) * 2**7
    scaled[scaled < 2] = 0
    # Half has one bit more of exponent than S0E5M3 has bits in all but its sign: shifted by one, the high byte is the number.
    high = (scaled.view(torch.int16) << 1).view(torch.float8_e4m3fn)[:, 1::2]
    return high.contiguous(), factor


def dequantized(packed: torch.Tensor, scale: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
    """Return in float64 what an NVFP4 weight means, by the format's definition; the low half of a byte comes first."""
    table = torch.tensor([*_E2M1, *(-value for value in _E2M1)], dtype=torch.float64, device=packed.device)
    values = table[torch.stack((packed & 15, packed >> 4), dim=-1).long()].view(packed.shape[0], -1, GROUP)
    return (values * (scale.double() / divisor.double()).unsqueeze(-1)).flatten(1)


def random_weight(rows: int, columns: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (packed, scale, divisor) of random bits and scales that span five powers of two."""
    packed = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device=device)
    scale = (2.0 ** (torch.rand(rows, columns // GROUP, device=device) * 5 + 2)).to(torch.float8_e4m3fn)
    return packed, scale, torch.tensor(2000.0, device=device)
