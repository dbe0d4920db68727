"""Judgements over what was measured: pure functions, so that each can be tried with figures from any machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from envbuilder.smoke.results import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuilder.smoke.results import Measured, Module

# Rounding to E2M1 in groups of 16 costs a normally distributed weight 0.095 of its norm; an unrelated weight of the
# same size is 1.41 away. Anything near the first is the weight that was quantized.
MOST_DISK_ERROR = 0.15
# transformers computes with bf16 (8 bits of mantissa) what the file says exactly.
MOST_RELOAD_ERROR = 0.01

VISION_ON_DISK = "model.vision_embedder.patch_dense"
VISION_IN_MODEL = "model.embed_vision.patch_dense"

RELOAD_FINDING = Finding(
    name="transformers-reload-loses-patch-dense",
    text=(
        "transformers, reloading this checkpoint, drops the packed weight of the vision patch_dense and computes with"
        " whatever numbers it finds instead. Text is not affected, and the file is not: it is checked by itself."
        " Cause: the compressed-tensors quantizer's conversion `.weight_packed$ -> weight`, meant for experts, also"
        " matches this key; the fallback that rescues every other layer looks up the key's name on disk, which for"
        f" this layer alone ({VISION_ON_DISK}) is not its name in the model ({VISION_IN_MODEL})."
    ),
    refs=(
        "transformers/quantizers/quantizer_compressed_tensors.py: get_weight_conversions",
        "transformers/core_model_loading.py: convert_and_load_state_dict_in_model",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    problems: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def difference(expected: str, found: str) -> str:
    """Say where a text leaves the expected one; empty when it does not."""
    if found == expected:
        return ""
    if not found:
        return "no text at all"
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(len(expected), len(found)))
    if at == len(found):
        return f"it stops after {at} of {len(expected)} characters: {_clip(found)!r}"
    if at == len(expected):
        return f"it goes on after the end: {_clip(found[at:])!r}"
    return f"it differs from character {at + 1} on: {_clip(found)!r}"


def judge_texts(expected: str, decoded: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, ...]:
    """Return what is wrong with each of the named texts. A text that is absent is wrong."""
    found = ((name, difference(expected, decoded.get(name, ""))) for name in names)
    return tuple(f"the {name.replace('_', ' ')} model's text is not the expected one: {wrong}" for name, wrong in found if wrong)


def advice(decoded: Mapping[str, str], expected: str, *, gpu: bool) -> str:
    """Say where to look when a served text is wrong, though the same checkpoint was exact under transformers."""
    if decoded.get("served") == expected:
        return "Completions are right and chat is wrong: look at chat_template.jinja, which must begin with bos_token."
    if gpu:
        return (
            "The checkpoint is right (transformers reads it exactly), so suspect the GPU's FP4 kernel:"
            " `envbuilder gpu-code` on the serve environment says what code it has for this GPU."
        )
    return "The checkpoint is right (transformers reads it exactly): suspect how the server loads it; its log names the kernels."


def judge_quantization(measured: Measured, expected: str) -> Verdict:
    """Judge the canary's making: three exact texts, and every quantized weight right on disk and after a reload."""
    problems = list(judge_texts(expected, measured.decoded, ("fp32", "bf16", "quantized")))
    if measured.decoded.get("random") == expected:
        problems.append("the model with random weights says the expected text too: this test cannot tell right from wrong")
    if VISION_ON_DISK not in {module.name for module in measured.modules}:
        problems.append(f"the quantized checkpoint has no {VISION_ON_DISK}: the vision tower was not quantized")
    problems += [f"lm_head or a projection that must stay in bf16 was quantized: {m.name}" for m in measured.modules if _must_stay(m.name)]
    problems += [
        f"{module.name}: the weight in the file is not the quantized one ({_distance(module.disk_error)} from the bf16 weight)"
        for module in measured.modules
        if not _within(module.disk_error, MOST_DISK_ERROR)
    ]
    astray = [module for module in measured.modules if not _within(module.reload_error, MOST_RELOAD_ERROR)]
    known = [module for module in astray if _is_known(module, measured)]
    problems += [
        f"transformers finds no {key} in the checkpoint" for key in measured.missing_keys if not key.startswith(f"{VISION_IN_MODEL}.")
    ]
    problems += [
        f"{module.name}: transformers computes with another weight than the file's ({_distance(module.reload_error)})"
        for module in astray
        if module not in known
    ]
    dropped = any(key.startswith(f"{VISION_IN_MODEL}.") for key in measured.missing_keys)
    return Verdict(problems=tuple(problems), findings=(RELOAD_FINDING,) if dropped else ())


def reload_is_right(measured: Measured) -> bool:
    """Whether every quantized weight, the vision tower's too, came back from the file as it stands there."""
    return not measured.missing_keys and all(_within(module.reload_error, MOST_RELOAD_ERROR) for module in measured.modules)


def _is_known(module: Module, measured: Measured) -> bool:
    """The known fault and no other: this layer, its packed weight reported missing by transformers itself."""
    return module.name == VISION_ON_DISK and f"{VISION_IN_MODEL}.weight_packed" in measured.missing_keys


def _must_stay(name: str) -> bool:
    return name.endswith("lm_head") or "embedding_projection" in name


def _within(error: float | None, most: float) -> bool:
    return error is not None and error <= most


def _distance(error: float | None) -> str:
    return "no finite number" if error is None else f"{error:.2f} of its norm"


def _clip(text: str, width: int = 120) -> str:
    return text if len(text) <= width else f"{text[:width]}…"
