"""The overlay that lets CUDA's torchvision import over torch+cpu. Without it transformers cannot make Gemma 4's processor."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from envbuilder.build.overlays import install, names
from envbuilder.errors import UnknownNameError

if TYPE_CHECKING:
    from pathlib import Path

# As much of torch as the overlay touches, and a torchvision that fails without it, as the real one does.
_TORCH = """
from types import SimpleNamespace
version = SimpleNamespace(cuda={cuda!r})
defined = []
class Library:
    def __init__(self, namespace, kind): self.namespace = namespace
    def define(self, schema): defined.append(self.namespace + "::" + schema.split("(")[0])
library = SimpleNamespace(Library=Library)
"""
_TORCHVISION = "import torch; print(sorted(torch.defined))"


def _import_torchvision(site: Path, *, cuda: str | None) -> str:
    (site / "torch.py").write_text(_TORCH.format(cuda=cuda))
    (site / "torchvision.py").write_text(_TORCHVISION)
    code = f"import site; site.addsitedir({str(site)!r}); import sys; assert 'torch' not in sys.modules; import torchvision"
    return subprocess.run([sys.executable, "-ISc", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_operators_are_defined_before_torchvision_over_a_cpu_torch(tmp_path: Path) -> None:
    install("torchvision_cpu", tmp_path)
    assert _import_torchvision(tmp_path, cuda=None) == "['torchvision::nms', 'torchvision::qnms']"


def test_a_cuda_torch_is_left_alone(tmp_path: Path) -> None:
    """There torchvision defines its own operators; a second definition would be an error."""
    install("torchvision_cpu", tmp_path)
    assert _import_torchvision(tmp_path, cuda="13.0") == "[]"


def test_it_writes_the_same_bytes_every_time(tmp_path: Path) -> None:
    """The environment's hash is in the manifest."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    written = install("torchvision_cpu", tmp_path / "a")
    assert written == install("torchvision_cpu", tmp_path / "b")
    assert written == sorted(path.name for path in (tmp_path / "a").iterdir())
    for name in written:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_unknown_overlay_is_answered_with_the_nearest(tmp_path: Path) -> None:
    assert "torchvision_cpu" in names()
    with pytest.raises(UnknownNameError) as caught:
        install("torchvison_cpu", tmp_path)
    assert "torchvision_cpu" in caught.value.next
