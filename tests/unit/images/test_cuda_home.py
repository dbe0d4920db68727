"""What is compiled for the GPU at run time finds a toolkit, or there would be no FlashInfer in `dev`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envbuilder.images.recipe import layers_of
from tests.unit.images.small import wheel

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuilder.images.inputs import Inputs

NVIDIA = {
    "nvidia-cuda-nvcc": {"nvidia/cu13/bin/nvcc": b"compiles"},
    "nvidia-cuda-runtime": {
        "nvidia/cu13/include/cuda.h": b"",
        "nvidia/cu13/lib/libcudart.so.13": b"",
        "nvidia/cu13/lib/libcudart_static.a": b"",
    },
    "nvidia-cudnn": {"nvidia/cudnn/lib/libcudnn.so.9": b""},
}
SITE = "/opt/venv/lib/python3.11/site-packages/nvidia/cu13"


def test_dev_has_a_toolkit_at_its_usual_place(make_inputs: Callable[..., Inputs]) -> None:
    """FlashInfer takes nvcc from /usr/local/cuda/bin and links with -lcudart from lib64: NVIDIA's wheels have neither."""
    inputs = make_inputs(serve={name: wheel(name.replace("-", "_"), files) for name, files in NVIDIA.items()})
    [layer] = [layer for layer in layers_of("dev", inputs) if layer.name == "cuda"]
    links = {path: entry.target for path, entry in layer.make(None).items() if entry.target}  # type: ignore[arg-type]
    assert links == {
        "usr/local/cuda/bin": f"{SITE}/bin",
        "usr/local/cuda/include": f"{SITE}/include",
        "usr/local/cuda/nvvm": f"{SITE}/nvvm",
        "usr/local/cuda/lib64/libcudart.so.13": f"{SITE}/lib/libcudart.so.13",
        "usr/local/cuda/lib64/libcudart.so": "libcudart.so.13",
        "usr/local/cuda/lib64/libcudart_static.a": f"{SITE}/lib/libcudart_static.a",
    }


def test_without_nvcc_there_is_none(make_inputs: Callable[..., Inputs]) -> None:
    inputs = make_inputs(serve={"nvidia-cuda-runtime": wheel("nvidia_cuda_runtime", NVIDIA["nvidia-cuda-runtime"])})
    assert "cuda" not in {layer.name for image in ("base", "serve", "quantize", "dev") for layer in layers_of(image, inputs)}
