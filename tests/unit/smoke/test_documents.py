"""smoke.json is a contract: it must be valid however the stages ended, and never claim what was not proved."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from envbuilder import smoke
from envbuilder.errors import SmokeError
from envbuilder.smoke.results import ANSWER, Device, QuantizeResult, ServeResult, Stage, Status

if TYPE_CHECKING:
    from envbuilder.smoke.results import Measured

_FAILED = Stage(status=Status.FAILED, seconds=2.0, reason="it broke", next="Log: /x")


def _valid(document: dict[str, Any]) -> dict[str, Any]:
    schema = json.loads(resources.files("envbuilder.schemas").joinpath("smoke.json").read_text(encoding="utf-8"))
    read: dict[str, Any] = json.loads(json.dumps(document))
    jsonschema.validate(read, schema)
    return read


def test_a_pass_on_a_cpu_proves_format_names_and_server_but_no_gpu_kernel(quantized: QuantizeResult, served: ServeResult) -> None:
    document = _valid(smoke.document(quantized, served))
    assert document["exact"]
    assert any("format and names" in text for text in document["proved"])
    assert not any("kernel" in text for text in document["proved"])
    assert any("reference kernel stood in" in text for text in document["not_proved"])
    assert any("patch_dense" in text for text in document["not_proved"])
    smoke.require(document)


def test_a_pass_on_a_gpu_names_its_kernel(quantized: QuantizeResult, served: ServeResult) -> None:
    on_gpu = replace(served, device=Device.CUDA, reference_kernel=False, kernel="MarlinNvFp4LinearKernel")
    document = _valid(smoke.document(quantized, on_gpu))
    assert any("MarlinNvFp4LinearKernel" in text for text in document["proved"])
    assert not any("kernel" in text for text in document["not_proved"])
    assert any("FlashInfer" in text for text in document["not_proved"]), "the server was started without its sampler"


def test_a_reload_that_is_right_is_proved(whole: Measured, served: ServeResult) -> None:
    document = smoke.document(QuantizeResult(stage=Stage(status=Status.PASSED), measured=whole), served)
    assert any("reloads is the file's" in text for text in document["proved"])
    assert not any("patch_dense" in text for text in document["not_proved"])


def test_a_failed_quantization_leaves_the_rest_not_run(measured: Measured) -> None:
    failed = QuantizeResult(stage=_FAILED, device=Device.CUDA, measured=measured)
    document = _valid(smoke.document(failed, None))
    assert {name: stage["status"] for name, stage in document["stages"].items()} == {
        "quantize": "failed",
        "serve": "not-run",
        "decode": "not-run",
    }
    assert document["device"] == "cuda"
    assert document["proved"] == []
    with pytest.raises(SmokeError, match="quantize stage failed") as caught:
        smoke.require(document)
    assert caught.value.why == "it broke"
    assert caught.value.next == "Log: /x"


@pytest.mark.parametrize("name", ["serve", "decode"])
def test_each_failed_stage_is_an_error(quantized: QuantizeResult, served: ServeResult, name: str) -> None:
    document = _valid(smoke.document(quantized, replace(served, **{name: _FAILED})))
    with pytest.raises(SmokeError, match=f"{name} stage failed"):
        smoke.require(document)


@pytest.mark.parametrize("name", ["served", "served_chat"])
def test_one_wrong_served_text_is_not_exact(quantized: QuantizeResult, served: ServeResult, name: str) -> None:
    document = smoke.document(quantized, replace(served, decoded={**served.decoded, name: ANSWER + "?"}))
    assert not document["exact"]


def test_not_run_proves_nothing_and_is_not_exact() -> None:
    document = _valid(smoke.not_run("this machine has no NVIDIA GPU", device=Device.CUDA))
    assert document["proved"] == []
    assert not document["exact"]
    assert document["decoded"] == {"bf16": None, "quantized": None, "served": None, "served_chat": None}
    assert document["stages"]["serve"]["reason"] == "this machine has no NVIDIA GPU"
    smoke.require(document)


def test_results_go_to_json_and_back(quantized: QuantizeResult, served: ServeResult) -> None:
    """A build resumes from what it stored: a result that changed on the way would change the manifest."""
    for result in (quantized, served):
        assert smoke.from_json(type(result), json.loads(json.dumps(smoke.to_json(result)))) == result


@pytest.mark.parametrize("broken", [{}, {"stage": {"status": "fine"}}, {"stage": {"status": "passed", "seconds": "1"}}, [], None])
def test_what_is_no_result_is_refused(broken: object) -> None:
    with pytest.raises(ValueError, match="validation error"):
        smoke.from_json(QuantizeResult, broken)
