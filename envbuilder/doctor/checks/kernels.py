"""GPU code: what the extensions carry for this GPU, and what Triton and FlashInfer can compile for it."""

from __future__ import annotations

from envbuilder.doctor.checks.common import dist, dist_seen, for_spark, gpus, numbers, pin_of, target_of, variable, vllm, wants_gpu
from envbuilder.doctor.commands import a_toolkit, anew, install, quoted, toolkit, uninstall
from envbuilder.doctor.model import Severity, fail, info, ok, skip, unknown, warn
from envbuilder.doctor.registry import check, only_in_logs
from envbuilder.doctor.versions import within
from envbuilder.facts.detect import fitting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envbuilder.doctor.model import Verdict
    from envbuilder.facts.model import Extension, Snapshot

_NEEDED = ("environment",)
_SM121 = (12, 9)
_CORE = ("vllm/_C.", "vllm/_C_stable_libtorch.", "vllm/_moe_C.", "vllm/_moe_C_stable_libtorch.")


def _core(s: Snapshot) -> list[Extension]:
    """Return vLLM's main extensions that have GPU code: the others (fa3, flashmla …) are for single GPUs by design."""
    extensions = (s.environment.extensions if s.environment else None) or ()
    return [extension for extension in extensions if extension.path.startswith(_CORE) and (extension.cubins or extension.ptx)]


def _runs(s: Snapshot, extension: Extension) -> str:
    """Return how an extension's code gets to run on the GPU in question: native, family, jit or none; "" if no GPU is known."""
    from envbuilder.binaries.fatbin import Code, parse_arch  # noqa: PLC0415 - only where there is GPU code
    from envbuilder.binaries.gpu_code import best, runs  # noqa: PLC0415

    capability = gpus(s)[0].compute_capability if gpus(s) and not _elsewhere(s) else ""
    gpu = parse_arch("sm_121a" if for_spark(s) else f"sm_{capability.replace('.', '')}")
    if gpu is None:
        return ""
    pieces = [Code(name.startswith("compute_"), arch) for name in (*extension.cubins, *extension.ptx) if (arch := parse_arch(name))]
    return best(runs(piece, gpu) for piece in pieces).value


def _code(extension: Extension) -> tuple[str, str]:
    return extension.path, " ".join((*extension.cubins, *extension.ptx)) or "no GPU code"


@check("EB-GPU-001", "torch-arch-2.1-rewrite", Severity.BLOCKS, needs=_NEEDED)
def arch_rewrite(s: Snapshot) -> Verdict:
    core = _core(s)
    if not core or not for_spark(s):
        return skip("no vLLM with GPU code for a GB10")
    emptied = [extension for extension in core if extension.cubins and set(extension.cubins) <= {"sm_75", "sm_52", "sm_20"}]
    if emptied:
        return fail(*map(_code, emptied[:3]), expected="sm_120f or sm_121a among them")
    return ok(_code(core[0]))


@check("EB-GPU-002", "no-code-for-gpu", Severity.BLOCKS, needs=_NEEDED, after=("EB-GPU-001", "EB-ENV-004", "EB-ENV-019"))
def no_code(s: Snapshot) -> Verdict:
    core = [(extension, way) for extension in _core(s) if (way := _runs(s, extension))]
    if not core:
        return skip("no GPU code, or no GPU, to compare")
    lacking = [extension for extension, way in core if way == "none"]
    return (
        fail(*map(_code, lacking[:3]), expected="code that this GPU runs")
        if lacking
        else ok(*(_code(extension) for extension, _ in core[:2]))
    )


@check("EB-GPU-003", "vllm-arch-12.1-rewritten", Severity.INFO, needs=_NEEDED)
def arch_rewritten(s: Snapshot) -> Verdict:
    core = _core(s)
    if not core or not for_spark(s):
        return skip("no vLLM with GPU code for a GB10")
    code = {sm for extension in core for sm in extension.cubins}
    if any(sm.startswith("sm_121") for sm in code):
        return ok(_code(core[0]))
    if any(sm.startswith("sm_120") for sm in code):
        return info(_code(core[0]), note="sm_120 and sm_120f run on GB10: nothing is missing.")
    return skip("no code of the family 12.x")


@check("EB-GPU-004", "vllm-arch-suffix-nan", Severity.WRONG_RESULT, needs=_NEEDED)
def suffix_lost(s: Snapshot) -> Verdict:
    server = dist(s, "vllm")
    if server is None or not for_spark(s):
        return skip("no vLLM for a GB10")
    code = {sm for extension in _core(s) for sm in extension.cubins if sm.startswith("sm_12")}
    if within(server.version, "<0.18") and code and not any(sm.endswith(("a", "f")) for sm in code):
        return warn(dist_seen(server), ("GPU code", " ".join(sorted(code))), expected="FP4 kernels compiled for 12.0f or 12.1a")
    return ok(dist_seen(server))


@check("EB-GPU-005", "code-compiled-at-start", Severity.SLOW, needs=_NEEDED)
def jit_at_start(s: Snapshot) -> Verdict:
    jit = [extension for extension in _core(s) if _runs(s, extension) == "jit"]
    return (
        info(*map(_code, jit[:3]), note="The driver compiles it at first use; slower once.")
        if jit
        else ok("no main extension is PTX alone")
    )


@check("EB-TRI-001", "triton-ptxas-sm121a", Severity.BLOCKS, needs=("environment", "variables"), after=("EB-TRI-005",))
def ptxas(s: Snapshot) -> Verdict:
    return _ptxas(s, s.environment.triton_ptxas if s.environment else "", "ptxas", "TRITON_PTXAS_PATH")


@check("EB-TRI-002", "triton-ptxas-blackwell", Severity.BLOCKS, needs=("environment", "variables"), after=("EB-TRI-005",))
def ptxas_blackwell(s: Snapshot) -> Verdict:
    return _ptxas(s, s.environment.triton_ptxas_blackwell if s.environment else "", "ptxas-blackwell", "TRITON_PTXAS_BLACKWELL_PATH")


def _ptxas(s: Snapshot, release: str, name: str, override: str) -> Verdict:
    if not for_spark(s) or not release:
        return skip(f"no {name} of Triton's for a GB10")
    if name == "ptxas" and s.environment and s.environment.triton_ptxas_blackwell:
        return skip("Triton uses ptxas-blackwell on this GPU")
    seen = [(f"triton/backends/nvidia/bin/{name}", f"release {release}")]
    given = (s.compilers.ptxas_releases if s.compilers else {}).get(override) if not _elsewhere(s) else None
    if given is not None:  # Triton takes what the variable names, if that answers at all, whatever its own one is
        seen.insert(0, (override, f"{variable(s, override)}, release {given}"))
    else:
        seen.append((override, variable(s, override) or "not set"))
    if given == "":
        return unknown(f"{override} names {variable(s, override)}, which does not say its release")
    if numbers(given or release) >= _SM121:
        return ok(*seen)
    better = toolkit(s, least=_SM121)
    path = f"{quoted(better.path)}/bin/ptxas" if better else "/usr/local/cuda-13.0/bin/ptxas"
    commands = (*(() if better else ("sudo apt install cuda-toolkit-13-0",)), f"export {override}={path}")
    return fail(*seen, expected="release 12.9 or newer", commands=commands)


@check("EB-TRI-003", "triton-python-h", Severity.BLOCKS, needs=_NEEDED, after=("EB-ENV-002", "EB-ENV-003"))
def python_h(s: Snapshot) -> Verdict:
    python = s.environment.interpreter if s.environment else None
    if not dist(s, "triton") or python is None or not wants_gpu(s) or _elsewhere(s):
        return skip("no Triton that compiles here")
    short = ".".join(python.version.split(".")[:2])
    if python.headers:
        return ok((f"include/python{short}/Python.h", "there"))
    if not python.exists and s.environment and s.environment.kind == "prefix":
        return skip("a prefix without an interpreter: whose headers count is not to be told")
    systems = python.home in {"/usr/bin", "/bin"} or python.path.startswith("/usr/bin/")
    return fail(
        (f"include/python{short}/Python.h", "not there"),
        expected=f"the headers of Python {short}",
        # A Python from elsewhere does not look where the system's package puts them.
        commands=(f"sudo apt install python{short}-dev",) if systems else anew(s, short, options="--managed-python"),
    )


@check("EB-TRI-004", "triton-no-compiler", Severity.BLOCKS, needs=("environment", "compilers"))
def no_compiler(s: Snapshot) -> Verdict:
    if not dist(s, "triton") or not wants_gpu(s) or _elsewhere(s) or s.compilers is None:
        return skip("no Triton that compiles here")
    return ok(("PATH", s.compilers.c)) if s.compilers.c else fail(("PATH", "neither gcc, cc nor clang"), expected="a C compiler")


def _elsewhere(s: Snapshot) -> bool:
    """Whether the environment is judged for another machine than this one."""
    return bool(s.target) and s.target != fitting(s.machine)


@check("EB-TRI-005", "triton-ptxas-path-missing", Severity.BLOCKS, needs=("compilers",))
def ptxas_path(s: Snapshot) -> Verdict:
    compilers = s.compilers
    lost = [entry.partition("=") for entry in (compilers.lost_programs if compilers else ()) if entry.startswith("TRITON_")]
    closed = [name for name in (compilers.not_executable if compilers else ()) if name.startswith("TRITON_")]
    commands = (f"unset {' '.join([*closed, *(name for name, _, _ in lost)])}",)
    if closed:
        return fail(*((name, f"{variable(s, name)}: not executable") for name in closed), expected="a program", commands=commands)
    if lost:
        return warn(
            *((name, f"{path}: not there") for name, _, path in lost),
            expected="a ptxas that is there",
            note="Triton takes its own instead.",
            commands=commands,
        )
    return ok("Triton's assembler is its own, or where the variable says")


only_in_logs("EB-TRI-006", "triton-smem-99k", Severity.BLOCKS)


@check("EB-FI-001", "flashinfer-cubin-mismatch", Severity.BLOCKS, needs=_NEEDED)
def flashinfer_versions(s: Snapshot) -> Verdict:
    main = dist(s, "flashinfer-python")
    others = [entry for name in ("flashinfer-cubin", "flashinfer-jit-cache") if (entry := dist(s, name))]
    if main is None or not others:
        return skip("not several FlashInfer packages")
    seen = tuple(map(dist_seen, (main, *others)))
    if {entry.version.partition("+")[0] for entry in others} == {main.version.partition("+")[0]}:
        return ok(*seen)
    wrong = [entry.name for entry in others if entry.version.partition("+")[0] != main.version.partition("+")[0]]
    return fail(*seen, expected=f"{main.version} of each", commands=uninstall(s, *wrong))


@check("EB-FI-002", "flashinfer-jit-wrong-cuda", Severity.BLOCKS, needs=_NEEDED)
def jit_cache(s: Snapshot) -> Verdict:
    env = s.environment
    if env is None or not env.jit_cache or env.torch is None or not env.torch.cuda:
        return skip("no compiled FlashInfer kernels, or no CUDA torch")
    major = str(numbers(env.torch.cuda)[0])
    wrong = [library for library in env.jit_cache if library.cudart != major]
    if not wrong:
        return ok(f"{len(env.jit_cache)} kept kernels, all for CUDA {major}")
    seen = [(library.path, f"needs libcudart.so.{library.cudart}") for library in wrong[:3]]
    above, found, _ = wrong[0].path.partition("/.cache/flashinfer/")
    if not found:
        return fail(*seen, expected=f"libcudart.so.{major}")
    cache = f"{quoted(above)}/.cache/flashinfer"
    commands = (f"mv -T {cache} {cache}.old", f"export FLASHINFER_WORKSPACE_BASE={quoted(env.path)}")
    return fail(*seen, expected=f"libcudart.so.{major}", commands=commands)


@check("EB-FI-003", "flashinfer-old-toolkit", Severity.BLOCKS, needs=("environment", "toolkits"), after=("EB-CUDA-001",))
def old_toolkit(s: Snapshot) -> Verdict:
    if not dist(s, "flashinfer-python") or dist(s, "flashinfer-jit-cache") or not for_spark(s) or _elsewhere(s):
        return skip("no FlashInfer that compiles for a GB10")
    used = next(
        (kit for way in ("CUDA_HOME", "PATH", "/usr/local/cuda") for kit in s.toolkits or () if way in kit.found_by and kit.nvcc), None
    )
    if used is None or not used.release:
        return skip("no nvcc that it would take")
    seen = (f"{used.path}/bin/nvcc", f"CUDA {used.release}")
    if numbers(used.release) >= _SM121 or variable(s, "VLLM_USE_FLASHINFER_SAMPLER") == "0":
        return ok(seen)
    return fail(seen, expected="12.9 or newer", commands=(*a_toolkit(s, least=_SM121), "export VLLM_USE_FLASHINFER_SAMPLER=0"))


@check("EB-FI-004", "flashinfer-major10", Severity.BLOCKS, needs=("environment", "variables"))
def moe_fp4(s: Snapshot) -> Verdict:
    entry = dist(s, "flashinfer-python")
    value = variable(s, "VLLM_USE_FLASHINFER_MOE_FP4")
    if entry is None or not for_spark(s):
        return skip("no FlashInfer for a GB10")
    seen = (dist_seen(entry), ("VLLM_USE_FLASHINFER_MOE_FP4", value or "not set"))
    return warn(*seen, expected="0, or not set") if value == "1" and within(entry.version, "<0.6.19") else ok(*seen)


@check("EB-FI-005", "flashinfer-version-check-off", Severity.WRONG_RESULT, needs=("variables",))
def version_check_off(s: Snapshot) -> Verdict:
    value = variable(s, "FLASHINFER_DISABLE_VERSION_CHECK")
    seen = ("FLASHINFER_DISABLE_VERSION_CHECK", value or "not set")
    return warn(seen, expected="not set") if value == "1" else ok(seen)


@check("EB-FI-006", "flashinfer-not-vllms", Severity.BLOCKS, needs=_NEEDED, after=("EB-FI-001",))
def not_vllms(s: Snapshot) -> Verdict:
    entry, server = dist(s, "flashinfer-python"), vllm(s)
    pin = pin_of(s, server, "flashinfer-python")
    if entry is None or server is None or not pin.startswith("=="):
        return skip("no vLLM that pins FlashInfer")
    seen = (dist_seen(server), dist_seen(entry))
    if within(entry.version.partition("+")[0], pin):
        return ok(*seen)
    return warn(*seen, expected=f"flashinfer-python{pin}", commands=install(s, f"flashinfer-python{pin}"))


@check("EB-FI-007", "flashinfer-cubin-unneeded", Severity.INFO, needs=_NEEDED)
def cubin_unneeded(s: Snapshot) -> Verdict:
    entry = dist(s, "flashinfer-cubin")
    if entry is None or not for_spark(s):
        return ok("no flashinfer-cubin for a GB10")
    return info(dist_seen(entry), note="448 MB that a GB10 does not use.", commands=uninstall(s, entry.name))


only_in_logs("EB-FI-008", "flashinfer-tllmgen-unsupported", Severity.BLOCKS)


@check("EB-GPU-006", "target-and-machine-differ", Severity.INFO)
def other_target(s: Snapshot) -> Verdict:
    if _elsewhere(s):
        return info(
            ("--target", s.target),
            ("this machine", fitting(s.machine)),
            note="The environment is judged for the target, the machine for itself.",
        )
    return ok(("target", target_of(s)))


@check("EB-GPU-007", "extensions-unread", Severity.INFO, needs=_NEEDED)
def unread(s: Snapshot) -> Verdict:
    if s.environment and s.environment.valid and s.environment.extensions is None:
        return unknown("the reader of extension modules did not finish")
    return ok("extension modules were read")
