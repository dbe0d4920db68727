"""What the smoke test found, as plain data that goes to JSON and back."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, TypeVar

# The one right answer. Twelve words that no other model would say; the prompt is short, so that every token of the
# answer is the model's own work.
PROMPT = "canary>"
ANSWER = " The canary sang twelve clear notes at dawn, and the mine was safe."

T = TypeVar("T")


class Status(enum.StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not-run"


class Device(enum.StrEnum):
    CPU = "cpu"
    CUDA = "cuda"


class Control(enum.StrEnum):
    """Negative controls: a canary that must not pass. The tests show that it does not."""

    NONE = "none"
    RANDOM_WEIGHTS = "random-weights"
    TEMPLATE_WITHOUT_BOS = "template-without-bos"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How one stage ended. `reason` says what failed and why; `next` what to do, with the log and the replay line."""

    status: Status
    seconds: float = 0.0
    reason: str = ""
    next: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A fault that is known, named, and not the built environment's: it is told, and fails nothing."""

    name: str
    text: str
    refs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Module:
    """One quantized linear layer, under its name on disk. Distances are relative, in the Frobenius norm.

    `disk_error` is between the dequantized file and the bf16 weight: the rounding, about 0.095 for NVFP4.
    `reload_error` is between what transformers computes with after a reload and the file: 0 but for bf16's rounding.
    None means that there is no finite number: a weight is missing, or holds NaN.
    """

    name: str
    disk_error: float | None
    reload_error: float | None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A saved model: the sha256 of its tensors' file, and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What `inside/canary.py` wrote down; it judges nothing.

    `decoded` holds the greedy text of "random", "fp32", "bf16" and "quantized"; `confidence` the least probability
    that the model gave a right token. `left_alone` are the linear layers that stayed in bf16.
    """

    decoded: dict[str, str]
    confidence: dict[str, float]
    steps: int
    loss: float
    modules: tuple[Module, ...]
    left_alone: tuple[str, ...]
    missing_keys: tuple[str, ...]
    unexpected_keys: tuple[str, ...]
    base: Checkpoint
    quantized: Checkpoint
    versions: dict[str, str]
    seconds: dict[str, float]
    peak_rss: int


@dataclass(frozen=True, kw_only=True)
class QuantizeResult:
    stage: Stage
    device: Device = Device.CPU
    prompt: str = PROMPT
    expected: str = ANSWER
    measured: Measured | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ServeResult:
    """`decoded` holds "served" (completions) and "served_chat". `kernel` is what vLLM's log names for NVFP4."""

    serve: Stage
    decode: Stage
    device: Device
    decoded: dict[str, str] = field(default_factory=dict)
    kernel: str = ""
    reference_kernel: bool = False
    ready_seconds: float | None = None
    tokens_per_second: float | None = None
    versions: dict[str, str] = field(default_factory=dict)


def to_json(result: QuantizeResult | ServeResult) -> dict[str, Any]:
    from pydantic import TypeAdapter  # noqa: PLC0415 - a tenth of a second that `--help` need not pay

    data: dict[str, Any] = TypeAdapter(type(result)).dump_python(result, mode="json")
    return data


def from_json(kind: type[T], data: object) -> T:
    """Read a result back. Raises pydantic.ValidationError where the data does not fit."""
    from pydantic import TypeAdapter  # noqa: PLC0415 - see to_json

    # Strictness is what keeps "3" from passing for 3; JSON has no tuples or enums, hence validate_json's rules.
    from pydantic_core import to_json as encode  # noqa: PLC0415

    return TypeAdapter(kind).validate_json(encode(data), strict=True)
