"""A vLLM plugin: a reference NVFP4A16 linear layer for CPUs, where vLLM has no kernel of its own.

It unpacks a weight once, at load, by the format's definition, and multiplies in bf16. So a server can be proved on any
machine to read the checkpoint's format and names; the GPU's kernel is not exercised, and the smoke test's report says
so. Visible to the smoke test's own server alone (see plugins.py), and does nothing on any other platform.

vLLM reads plugins in each of its processes, through the entry point group `vllm.general_plugins`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from vllm.model_executor.kernels.linear.nvfp4.base import NvFp4LinearKernel, NvFp4LinearLayerConfig

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_GROUP = 16  # weights that share one fp8 scale
_REPORT = "envbuilder: the reference NVFP4 kernel stands in"  # the parent looks for this line in the log


def register() -> None:
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        _stand_in()


def _stand_in() -> None:
    """Have the compressed-tensors NVFP4 scheme take the reference kernel where it would ask for Marlin."""
    import torch
    from vllm.logger import init_logger
    from vllm.model_executor.kernels.linear.nvfp4.base import NvFp4LinearKernel, NvFp4LinearLayerConfig
    from vllm.model_executor.layers.quantization.compressed_tensors.schemes import compressed_tensors_w4a4_nvfp4 as scheme

    logger = init_logger("vllm.envbuilder")
    choose = scheme.init_nvfp4_linear_kernel

    class ReferenceKernel(NvFp4LinearKernel):
        @classmethod
        def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:  # noqa: ARG003 - vLLM's interface
            return True, None

        @classmethod
        def can_implement(cls, config: NvFp4LinearLayerConfig) -> tuple[bool, str | None]:  # noqa: ARG003 - vLLM's interface
            return True, None

        def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
            """Replace the packed weight (uint8, rows x columns / 2) by what it means, in bf16."""
            packed, scale = layer.weight.data, layer.weight_scale.data.float()
            table = torch.tensor([*_E2M1, *(-value for value in _E2M1)])
            values = table[torch.stack((packed & 15, packed >> 4), dim=-1).long()].view(packed.shape[0], -1, _GROUP)
            # vLLM has turned the file's divisor into a factor by now.
            weight = (values * (scale * layer.weight_global_scale.data.float()).unsqueeze(-1)).flatten(1)
            layer.weight = torch.nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
            del layer.weight_scale

        def apply_weights(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            return torch.nn.functional.linear(x, layer.weight.to(x.dtype), bias)

    def chosen(use_a16: bool = False) -> NvFp4LinearKernel:  # noqa: FBT001, FBT002 - vLLM's signature
        if not use_a16:
            return choose(use_a16)
        logger.info_once(_REPORT)
        return ReferenceKernel(NvFp4LinearLayerConfig())

    scheme.init_nvfp4_linear_kernel = chosen
