"""Let a CUDA build of torchvision import over a CPU build of torch.

The default index has no CPU torchvision for x86_64 Linux. The CUDA build's `_C.so` cannot load without the CUDA
libraries, so its operators are never defined, and `torchvision/_meta_registrations.py`, which registers shapes for two
of them, ends every import with `operator torchvision::nms does not exist`. This module gives the two operators their
schemas just before torchvision is imported; they stay without a kernel, so calling one is still an error that says so.

An interpreter imports this at every start (through a `.pth` file), hence no import beyond `sys` until torchvision is
asked for.
"""

from __future__ import annotations

import sys

# The signatures of torchvision/csrc/ops/nms.cpp and quantized/cpu/qnms_kernel.cpp.
_SCHEMAS = tuple(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms"))
_kept: list[object] = []  # a torch.library.Library takes its definitions with it when it is collected


class _BeforeTorchvision:
    """A finder that finds nothing: it only learns that torchvision is about to be imported."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:  # noqa: ARG002 - importlib's protocol
        if name == "torchvision":
            sys.meta_path.remove(self)
            _define_operators()


def _define_operators() -> None:
    import torch  # type: ignore[import-not-found]  # noqa: PLC0415 - only who wants torchvision pays for torch

    if torch.version.cuda is None:
        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
        _kept.append(library)


sys.meta_path.insert(0, _BeforeTorchvision())
