"""transformers, llm-compressor and the models on the disk."""

from __future__ import annotations

from envbuilder.doctor.checks.common import dist, dist_seen, for_spark, pin_of, variable, vllm
from envbuilder.doctor.commands import backend, install, quoted
from envbuilder.doctor.model import Severity, fail, info, ok, skip, warn
from envbuilder.doctor.registry import check, only_in_logs
from envbuilder.doctor.versions import within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envbuilder.doctor.model import Verdict
    from envbuilder.facts.model import Checkpoint, Snapshot

_NEEDED = ("environment",)
_GEMMA4 = "gemma4_unified"


def _gemma4(s: Snapshot) -> list[Checkpoint]:
    return [model for model in s.checkpoints or () if model.model_type.startswith("gemma4")]


@check("EB-TF-001", "tf-gemma4-unified-unknown", Severity.BLOCKS, needs=_NEEDED)
def gemma4_unknown(s: Snapshot) -> Verdict:
    entry, env = dist(s, "transformers"), s.environment
    if entry is None or env is None:
        return skip("no transformers in the environment")
    seen = (dist_seen(entry), ("transformers/models/", _GEMMA4 if _GEMMA4 in env.model_types else f"no {_GEMMA4}"))
    if _GEMMA4 in env.model_types:
        return ok(*seen)
    models = [model.name for model in _gemma4(s) if model.model_type == _GEMMA4]
    fix = install(s, "transformers>=5.10.1,<5.15")
    if models:
        return fail(*seen, ("model", models[0]), expected="transformers 5.10.1 or newer", commands=fix)
    server = vllm(s)
    knows = server is not None and "gemma4_unified.py" in env.vllm_models
    if knows and (for_spark(s) or _outside(s, "<")):
        return (
            fail(*seen, dist_seen(server), expected="transformers 5.10.1 or newer", commands=fix)
            if server and _outside(s, "<")
            else warn(*seen, expected="transformers 5.10.1 or newer", commands=fix)
        )
    return info(*seen, note="It matters for Gemma 4's unified models only.")


def _outside(s: Snapshot, side: str) -> bool:
    """Whether transformers is below (or above) what vLLM's own metadata asks."""
    entry = dist(s, "transformers")
    pin = pin_of(s, vllm(s), "transformers")
    if entry is None or not pin or within(entry.version, pin):
        return False
    bounds = [part for part in pin.split(",") if part.startswith(">=" if side == "<" else "<")]
    return any(not within(entry.version, part) for part in bounds)


@check("EB-TF-002", "tf-5.15-per-layer", Severity.BLOCKS, needs=_NEEDED)
def per_layer(s: Snapshot) -> Verdict:
    entry, server = dist(s, "transformers"), vllm(s)
    if entry is None or server is None:
        return skip("not both vLLM and transformers")
    seen = (dist_seen(entry), dist_seen(server))
    if not (within(entry.version, ">=5.15") and within(server.version, ">=0.23,<0.28")):
        return ok(*seen)
    fix = install(s, "transformers>=5.10.1,<5.15")
    return (fail if for_spark(s) or _gemma4(s) else warn)(*seen, expected="transformers >=5.10.1,<5.15", commands=fix)


@check("EB-TF-003", "tf-tokenizers-window", Severity.BLOCKS, needs=_NEEDED)
def tokenizers_window(s: Snapshot) -> Verdict:
    entry = dist(s, "transformers")
    if entry is None:
        return skip("no transformers in the environment")
    wrong = [
        (other, pin)
        for name in ("tokenizers", "huggingface-hub", "safetensors")
        if (other := dist(s, name)) and (pin := pin_of(s, entry, name)) and not within(other.version, pin)
    ]
    if not wrong:
        return ok(dist_seen(entry))
    first, pin = wrong[0]
    return fail(
        dist_seen(entry),
        *(dist_seen(other) for other, _ in wrong),
        expected=f"{first.name}{pin}",
        commands=install(s, f"{first.name}{pin}"),
    )


@check("EB-TF-004", "nvfp4-container-tf-old", Severity.BLOCKS, needs=("environment", "checkpoints"), after=("EB-TF-001",))
def unknown_model_type(s: Snapshot) -> Verdict:
    entry, known = dist(s, "transformers"), set(s.environment.model_types if s.environment else ())
    if entry is None or not known or not s.checkpoints:
        return skip("no transformers, or no models on this machine")
    # Folders carry underscores where types may have hyphens; a type may also be one of several in a folder.
    strange = [model for model in s.checkpoints if model.model_type and not _has_folder(model.model_type, known)]
    if not strange:
        return ok(dist_seen(entry), f"{len(s.checkpoints)} models, all of known types")
    return info(
        dist_seen(entry),
        *(("model", f"{model.name}: {model.model_type}") for model in strange[:3]),
        note="transformers has no folder of that name: it may be too old for these, or they bring their own code.",
    )


def _has_folder(model_type: str, known: set[str]) -> bool:
    name = model_type.replace("-", "_").lower()
    return name in known or any(name.startswith(folder) for folder in known if len(folder) > 3)


@check("EB-TF-005", "transformers-not-vllms", Severity.BLOCKS, needs=_NEEDED, after=("EB-TF-001", "EB-TF-002", "EB-LLMC-003"))
def not_vllms(s: Snapshot) -> Verdict:
    entry, server = dist(s, "transformers"), vllm(s)
    pin = pin_of(s, server, "transformers")
    if entry is None or server is None or not pin:
        return skip("no vLLM that names its transformers")
    seen = (dist_seen(server), dist_seen(entry))
    return (
        ok(*seen) if within(entry.version, pin) else fail(*seen, expected=f"transformers{pin}", commands=install(s, f"transformers{pin}"))
    )


only_in_logs("EB-TF-006", "tf-auto-multimodal-empty", Severity.BLOCKS)


@check("EB-LLMC-001", "llmc-transformers-cap", Severity.BLOCKS, needs=_NEEDED, after=("EB-LLMC-003",))
def compressor_old(s: Snapshot) -> Verdict:
    entry = dist(s, "llmcompressor")
    if entry is None:
        return skip("no llmcompressor in the environment")
    transformers = dist(s, "transformers")
    seen = (dist_seen(entry), *([dist_seen(transformers)] if transformers else []))
    if within(entry.version, ">=0.12"):
        return ok(*seen)
    beyond = transformers is not None and within(transformers.version, ">4.57.6")
    return (fail if beyond or _gemma4(s) else info)(
        *seen,
        expected="llmcompressor 0.12 or newer for Gemma 4 and transformers 5",
        commands=install(s, "llmcompressor>=0.12", options=backend(s).strip()),
    )


@check("EB-LLMC-002", "llmc-transformers-exact", Severity.BLOCKS, needs=_NEEDED, after=("EB-LLMC-003",))
def compressor_exact(s: Snapshot) -> Verdict:
    entry, transformers = dist(s, "llmcompressor"), dist(s, "transformers")
    if entry is None or transformers is None or not within(entry.version, "==0.12.*"):
        return skip("no llmcompressor 0.12")
    seen = (dist_seen(entry), dist_seen(transformers))
    if within(transformers.version, "==5.10.1"):
        return ok(*seen)
    if within(transformers.version, ">=5.9,<5.10.1") and not _gemma4(s):
        return info(*seen, note="Allowed; it knows no gemma4_unified.")
    return fail(
        *seen,
        expected="transformers 5.10.1: no newer is allowed, no older knows gemma4_unified",
        commands=install(s, "transformers==5.10.1"),
    )


@check("EB-LLMC-003", "llmc-compressed-tensors-conflict", Severity.BLOCKS, needs=_NEEDED)
def compressed_tensors(s: Snapshot) -> Verdict:
    entry, server, shared = dist(s, "llmcompressor"), vllm(s), dist(s, "compressed-tensors")
    if entry is None or server is None:
        return ok("llmcompressor and vLLM are not in one environment")
    pins = (pin_of(s, entry, "compressed-tensors"), pin_of(s, server, "compressed-tensors"))
    seen = [dist_seen(entry), dist_seen(server), *([dist_seen(shared)] if shared else [])]
    if shared and all(not pin or within(shared.version, pin) for pin in pins):
        return ok(*seen)
    return fail(
        *seen, ("METADATA", f"compressed-tensors{pins[0]} and compressed-tensors{pins[1]}"), expected="two environments: quantize, serve"
    )


@check("EB-CKPT-001", "safetensors-header-eof", Severity.BLOCKS, needs=("checkpoints",), after=("EB-MACH-016",))
def broken_files(s: Snapshot) -> Verdict:
    if not s.checkpoints:
        return skip("no models on this machine")
    broken = [(f"model {model.name}", reason) for model in s.checkpoints for reason in model.broken if not model.downloading]
    if broken:
        names = dict.fromkeys(model.name for model in s.checkpoints if model.broken and not model.downloading and "/" in model.name)
        return fail(
            *broken[:4], expected="whole files", commands=tuple(f"{_hf(s)} download {quoted(name)} --force-download" for name in names)
        )
    under_way = [model.name for model in s.checkpoints if model.broken]
    if under_way:
        return info(("model", ", ".join(under_way[:3])), note="It is being downloaded now: what is not there yet comes.")
    return ok(f"{len(s.checkpoints)} models, all files whole")


def _hf(s: Snapshot) -> str:
    """Return the hub's program: the environment's (0.34 and later have one of this name), else uv's own copy of it."""
    has_it = s.environment is not None and (hub := dist(s, "huggingface-hub")) is not None and within(hub.version, ">=0.34")
    return f"{quoted(s.environment.path)}/bin/hf" if has_it and s.environment else "uv tool run --from huggingface-hub hf"


@check("EB-CKPT-002", "hf-gated", Severity.INFO, needs=("variables",))
def gated(s: Snapshot) -> Verdict:
    value = variable(s, "HF_TOKEN") or variable(s, "HUGGING_FACE_HUB_TOKEN")
    if value:
        return ok(("HF_TOKEN", value))
    return info(
        ("environment", "not logged in to the hub, by a variable or a file"),
        note="It matters for models behind a licence.",
        commands=(f"{_hf(s)} auth login",),
    )


@check("EB-CKPT-003", "hf-offline-without-model", Severity.INFO, needs=("variables", "checkpoints"))
def offline(s: Snapshot) -> Verdict:
    names = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if variable(s, name) in {"1", "true", "TRUE", "yes", "ON"}]
    if names and not s.checkpoints:
        return info((names[0], variable(s, names[0])), ("Hugging Face's cache", "no models"), note="Only a model's folder can be served.")
    return ok("not offline, or models are there")
