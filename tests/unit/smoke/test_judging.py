"""Without these judgements fluent nonsense, half an answer or a lost weight would pass as a working environment."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envbuilder.smoke import judging
from envbuilder.smoke.results import ANSWER, Module

if TYPE_CHECKING:
    from envbuilder.smoke.results import Measured

_TEXT = "model.language_model.layers.0.mlp.up_proj"


@given(st.text(), st.text())
def test_only_the_same_text_has_no_difference(expected: str, found: str) -> None:
    assert (judging.difference(expected, found) == "") == (expected == found)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("", "no text at all"),
        (ANSWER[:20], "stops after 20 of 67"),
        (ANSWER + " And", "goes on after the end"),
        (" The canary sananang twe tele ne", "differs from character 16"),
        (ANSWER.strip(), "differs from character 1 "),
    ],
)
def test_the_difference_says_where(found: str, said: str) -> None:
    assert said in judging.difference(ANSWER, found)


def test_a_long_wrong_text_does_not_flood_the_message() -> None:
    assert len(judging.difference(ANSWER, "x" * 5000)) < 250


def test_an_absent_text_is_a_wrong_text() -> None:
    assert len(judging.judge_texts(ANSWER, {"served": ANSWER}, ("served", "served_chat"))) == 1


def test_the_known_reload_fault_is_a_finding_and_no_failure(measured: Measured) -> None:
    verdict = judging.judge_quantization(measured, ANSWER)
    assert verdict.problems == ()
    assert [finding.name for finding in verdict.findings] == ["transformers-reload-loses-patch-dense"]
    assert not judging.reload_is_right(measured)


def test_a_right_reload_is_no_finding(whole: Measured) -> None:
    """The finding goes away by itself with a transformers that reloads the layer."""
    assert judging.judge_quantization(whole, ANSWER) == judging.Verdict()
    assert judging.reload_is_right(whole)


def test_a_missing_key_is_never_a_right_reload(whole: Measured) -> None:
    """Uninitialized memory can hold the right numbers by chance: what transformers reports missing is not proved."""
    assert not judging.reload_is_right(replace(whole, missing_keys=("model.embed_vision.patch_dense.weight_packed",)))


@pytest.mark.parametrize("name", ["fp32", "bf16", "quantized"])
def test_each_text_must_be_exact(measured: Measured, name: str) -> None:
    wrong = replace(measured, decoded={**measured.decoded, name: "Paris is the capital of France."})
    (problem,) = judging.judge_quantization(wrong, ANSWER).problems
    assert name in problem


def test_random_weights_that_know_the_answer_prove_that_the_test_is_broken(measured: Measured) -> None:
    broken = replace(measured, decoded={**measured.decoded, "random": ANSWER})
    assert "cannot tell right from wrong" in judging.judge_quantization(broken, ANSWER).problems[0]


@pytest.mark.parametrize("error", [None, 1.41, 0.2])
def test_another_vision_weight_on_disk_fails(measured: Measured, error: float | None) -> None:
    """Reading only text misses it: no text passes through this layer."""
    bad = replace(measured, modules=(measured.modules[0], replace(measured.modules[1], disk_error=error)))
    (problem,) = judging.judge_quantization(bad, ANSWER).problems
    assert judging.VISION_ON_DISK in problem


def test_a_vision_layer_that_was_not_quantized_fails(measured: Measured) -> None:
    assert "was not quantized" in judging.judge_quantization(replace(measured, modules=measured.modules[:1]), ANSWER).problems[0]


def test_another_layer_lost_at_reload_is_not_the_known_fault(measured: Measured) -> None:
    lost = replace(measured, modules=(replace(measured.modules[0], reload_error=None), measured.modules[1]))
    (problem,) = judging.judge_quantization(lost, ANSWER).problems
    assert _TEXT in problem


def test_a_wrong_vision_reload_without_a_missing_key_is_not_the_known_fault(measured: Measured) -> None:
    silent = replace(measured, missing_keys=())
    (problem,) = judging.judge_quantization(silent, ANSWER).problems
    assert judging.VISION_ON_DISK in problem


def test_another_missing_key_fails(measured: Measured) -> None:
    more = replace(measured, missing_keys=(*measured.missing_keys, "lm_head.weight"))
    assert "lm_head.weight" in judging.judge_quantization(more, ANSWER).problems[0]


@pytest.mark.parametrize("name", ["lm_head", "model.embed_vision.embedding_projection"])
def test_what_must_stay_in_bf16_must(measured: Measured, name: str) -> None:
    over = replace(measured, modules=(*measured.modules, Module(name=name, disk_error=0.09, reload_error=0.0)))
    assert name in judging.judge_quantization(over, ANSWER).problems[0]


def test_advice_points_at_the_template_when_only_chat_is_wrong() -> None:
    assert "bos_token" in judging.advice({"served": ANSWER, "served_chat": "?"}, ANSWER, gpu=True)
    assert "FP4" in judging.advice({"served": "?", "served_chat": "?"}, ANSWER, gpu=True)
    assert "FP4" not in judging.advice({"served": "?", "served_chat": "?"}, ANSWER, gpu=False)
