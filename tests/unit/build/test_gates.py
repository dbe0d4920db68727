from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from envbuilder.build.gates import check_gates, require
from envbuilder.errors import GateError
from envbuilder.targets.catalogue import find_target, target_files
from envbuilder.targets.model import ArchitectureGate, AttentionBackendGate, TorchBuildGate, VersionGate

if TYPE_CHECKING:
    from pathlib import Path

    from envbuilder.targets.model import Gate

REGISTRY = """
_TEXT = {
    "Gemma4ForCausalLM": ("gemma4", "Gemma4ForCausalLM"),
    "Gemma4UnifiedForConditionalGeneration": ("gemma4_unified", "Gemma4UnifiedForConditionalGeneration"),
    "GoneForCausalLM": ("gone", "GoneForCausalLM"),
}
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site-packages as pip leaves it, in small."""
    for name in ("transformers-5.14.1", "compressed_tensors-0.17.0", "torch-2.13.0", "odd-not.a.version"):
        (tmp_path / f"{name}.dist-info").mkdir()
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.13.0+cpu'\ncuda: str | None = None\n")
    models = tmp_path / "vllm" / "model_executor" / "models"
    models.mkdir(parents=True)
    (models / "registry.py").write_text(REGISTRY)
    (models / "gemma4_unified.py").write_text("")
    (tmp_path / "vllm/engine").mkdir()
    (tmp_path / "vllm/engine/arg_utils.py").write_text('group.add_argument("--attention-backend", **kwargs)\n')
    backends = tmp_path / "vllm/v1/attention/backends"
    backends.mkdir(parents=True)
    (backends / "registry.py").write_text("class AttentionBackendEnum(Enum):\n    FLASH_ATTN = 'a'\n    TRITON_ATTN = 'b'\n")
    return tmp_path


def version(specifier: str, distribution: str = "transformers") -> VersionGate:
    return VersionGate(kind="version", distribution=distribution, specifier=specifier, why="because")


def torch(version: str, cuda: str | None = None) -> TorchBuildGate:
    return TorchBuildGate(kind="torch-build", version=version, cuda=cuda, why="because")


def architecture(name: str) -> ArchitectureGate:
    return ArchitectureGate(kind="architecture", architecture=name, why="because")


def backend(name: str) -> AttentionBackendGate:
    return AttentionBackendGate(kind="attention-backend", backend=name, why="because")


@pytest.mark.parametrize(
    ("gate", "found", "holds"),
    [
        (version(">=5.10.1,<5.15"), "5.14.1", True),
        (version("<5.14"), "5.14.1", False),
        (version("==0.17.0", "Compressed_Tensors"), "0.17.0", True),
        (version(">=1", "llmcompressor"), "not installed", False),
        (version(">=1", "odd"), "not.a.version", False),
        (torch("2.13.0+cpu"), "2.13.0+cpu (CPU)", True),
        (torch("2.13.0"), "2.13.0+cpu (CPU)", False),
        (torch("2.13.0+cpu", "13.0"), "2.13.0+cpu (CPU)", False),
        (architecture("Gemma4UnifiedForConditionalGeneration"), "vllm.model_executor.models.gemma4_unified", True),
        (architecture("Gemma5ForCausalLM"), "unknown to it", False),
        (architecture("GoneForCausalLM"), "unknown to it", False),
        (backend("TRITON_ATTN"), "in its registry", True),
        (backend("XFORMERS"), "one of FLASH_ATTN, TRITON_ATTN", False),
    ],
)
def test_a_gate_holds_or_not_and_shows_what_was_found(site: Path, gate: Gate, found: str, holds: bool) -> None:  # noqa: FBT001
    [result] = check_gates("serve", [gate], site)
    assert (result.found, result.holds) == (found, holds)
    assert result.why == "because"
    assert result.expected


@pytest.mark.parametrize("gate", [version(">=1"), torch("2.13.0+cpu"), architecture("Gemma4ForCausalLM"), backend("TRITON_ATTN")])
def test_in_an_empty_environment_nothing_holds_and_nothing_crashes(tmp_path: Path, gate: Gate) -> None:
    [result] = check_gates("serve", [gate], tmp_path)
    assert not result.holds
    assert result.found


def test_the_real_build_counts_not_the_wheels_name(site: Path) -> None:
    """`torch-2.13.0` from the default index is the CUDA build; its folder's name does not tell."""
    (site / "torch" / "version.py").write_text("__version__ = '2.13.0+cu130'\ncuda = '13.0'\n")
    assert not check_gates("serve", [torch("2.13.0+cpu")], site)[0].holds
    assert check_gates("serve", [torch("2.13.0+cu130", "13.0")], site)[0].found == "2.13.0+cu130 (CUDA 13.0)"


def test_a_prerelease_that_fits_holds(site: Path) -> None:
    """A nightly that a target pins on purpose is no fault."""
    (site / "transformers-5.14.1.dist-info").rename(site / "transformers-5.15.0.dev3.dist-info")
    assert check_gates("serve", [version(">=5.10")], site)[0].holds


def test_all_that_fail_are_named_at_once_with_their_reasons(site: Path) -> None:
    results = check_gates("serve", [version("<5"), version(">=5"), torch("1"), architecture("X")], site)
    with pytest.raises(GateError, match="3 of 4 gates do not hold") as caught:
        require(results)
    lines = caught.value.why.splitlines()
    assert lines[0] == "serve: transformers must be <5, found 5.14.1: because"
    assert len(lines) == 3
    assert caught.value.exit_code == 1


def test_where_all_hold_nothing_is_raised(site: Path) -> None:
    require(check_gates("serve", [version(">=5"), torch("2.13.0+cpu")], site))
    require([])


def test_a_result_goes_to_the_manifest_as_plain_data(site: Path) -> None:
    [result] = check_gates("quantize", [version(">=5")], site)
    assert result.as_dict() == {
        "environment": "quantize",
        "subject": "transformers",
        "expected": ">=5",
        "found": "5.14.1",
        "holds": True,
        "why": "because",
    }


def test_a_backend_that_a_server_is_told_is_gated() -> None:
    """Else a target could name one that its vLLM does not know, and the image's server would end at once."""
    for name in target_files():
        for release in find_target(name)[0].releases.values():
            gated = {gate.backend for gate in release.serve.gates if isinstance(gate, AttentionBackendGate)}
            assert gated == {value for word, value in pairwise(release.serve.arguments) if word == "--attention-backend"}


def test_a_vllm_without_the_option_has_no_backend_to_name(site: Path) -> None:
    """Its server would end at once: unrecognized arguments."""
    (site / "vllm/engine/arg_utils.py").write_text("group.add_argument('--other')\n")
    [result] = check_gates("serve", [backend("TRITON_ATTN")], site)
    assert (result.found, result.holds) == ("no such option", False)
