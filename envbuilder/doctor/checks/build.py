"""Building from source: what would make the build fail, or succeed without its kernels."""

from __future__ import annotations

import re

from envbuilder.doctor.checks.common import for_spark, log_lines, numbers, variable
from envbuilder.doctor.model import Severity, fail, info, ok, skip, warn
from envbuilder.doctor.registry import check, only_in_logs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envbuilder.doctor.model import Verdict
    from envbuilder.facts.model import Project, Snapshot

_LISTS = ("TORCH_CUDA_ARCH_LIST", "FLASHINFER_CUDA_ARCH_LIST")
_GIB_A_JOB = 5.0  # measured on vLLM 0.22 and 0.23: most translation units 1-4 GiB, single ones up to 9.8


def _project(s: Snapshot) -> Project:
    assert s.project is not None  # noqa: S101 - every check that calls this needs "project"
    return s.project


def _tokens(value: str) -> list[str]:
    return [token for token in re.split(r"[;,\s]+", value) if token]


@check("EB-BUILD-001", "torch-arch-list-unset", Severity.BLOCKS, needs=("project", "variables"))
def arch_list_unset(s: Snapshot) -> Verdict:
    torch = s.environment.torch if s.environment else None
    if not _project(s).vllm_source or not for_spark(s):
        return skip("no vLLM source here to build for a GB10")
    value = variable(s, "TORCH_CUDA_ARCH_LIST")
    if value:
        return ok(("TORCH_CUDA_ARCH_LIST", value))
    seen = [("TORCH_CUDA_ARCH_LIST", "not set")]
    if torch and torch.arch_rewrite:
        seen.append(("torch/…/select_compute_arch.cmake", "rewrites 2.1 to 2.1(2.0)"))
    return (fail if torch and torch.arch_rewrite else warn)(*seen, expected="12.1a")


@check("EB-BUILD-002", "cuda-ptx-e2m1", Severity.BLOCKS, needs=("variables",))
def arch_without_suffix(s: Snapshot) -> Verdict:
    if not for_spark(s):
        return skip("not for a GB10")
    bare = [(name, variable(s, name)) for name in _LISTS if {"12.0", "12.1"} & set(_tokens(variable(s, name)))]
    if bare and _only_serves(s):
        return info(*bare, note="The image was built with it; it matters once you build here.")
    if bare:
        return warn(*bare, expected="12.1a, or 12.0f")
    return ok(*((name, variable(s, name) or "not set") for name in _LISTS))


@check("EB-BUILD-003", "arch-list-lacks-gpu", Severity.BLOCKS, needs=("variables",))
def arch_list_lacks_gpu(s: Snapshot) -> Verdict:
    value = variable(s, "TORCH_CUDA_ARCH_LIST")
    if not value or not for_spark(s):
        return skip("no list of architectures for a GB10")
    seen = ("TORCH_CUDA_ARCH_LIST", value)
    fits = [
        token
        for token in _tokens(value)
        if token.startswith(("12.0", "12.1")) or token.endswith("+PTX") or token in {"Blackwell", "All", "Common"}
    ]
    if fits:
        return ok(seen)
    if _only_serves(s):
        return info(seen, note="The image was built with it; it matters once you build here.")
    return warn(seen, expected="12.1a in it")


def _only_serves(s: Snapshot) -> bool:
    """Whether this is a container without a source tree: what its image was built with stands in its variables for ever."""
    return bool(s.host and s.host.container) and not (s.project and s.project.vllm_source)


@check("EB-BUILD-004", "vllm-scm-version", Severity.BLOCKS, needs=("project", "variables"))
def scm_version(s: Snapshot) -> Verdict:
    if not _project(s).vllm_source:
        return skip("no vLLM source here")
    given = next(
        (
            name
            for name in ("SETUPTOOLS_SCM_PRETEND_VERSION", "SETUPTOOLS_SCM_PRETEND_VERSION_FOR_VLLM", "VLLM_VERSION_OVERRIDE")
            if variable(s, name)
        ),
        "",
    )
    if _project(s).git != "none" or given:
        return ok((".git", _project(s).git), *([(given, variable(s, given))] if given else []))
    return fail((".git", "not there"), ("PKG-INFO", "not there"), expected="a git repository, an sdist, or a version given")


@check("EB-BUILD-005", "vllm-setuptools-rust", Severity.BLOCKS, needs=("project", "compilers"))
def rust(s: Snapshot) -> Verdict:
    channel = _project(s).rust_channel
    if not channel:
        return skip("no vLLM source with Rust parts here")
    cargo = s.compilers.cargo if s.compilers else ""
    seen = [("rust-toolchain.toml", f"channel {channel}"), ("PATH", cargo or "no cargo")]
    # rustup's cargo fetches the channel that the file names; the distribution's is of one release, and reads no such file.
    packaged = next((version for name in ("rustc", "cargo") if (version := (s.packages or {}).get(name, ""))), "")
    old = cargo == "/usr/bin/cargo" and numbers(packaged) and numbers(packaged)[:2] < numbers(channel)[:2]
    if old:
        seen.append(("dpkg", f"Rust {packaged}"))
    return warn(*seen, expected=f"cargo of Rust {channel}") if old or not cargo else ok(*seen)


@check("EB-BUILD-006", "build-oom-killed", Severity.BLOCKS, needs=("memory", "variables"))
def out_of_memory(s: Snapshot) -> Verdict:
    killed = log_lines(s, "Killed process", "oom-kill", pattern=r"(Killed process|oom-kill).*(cc1plus|cicc|nvcc|ptxas|ninja|fatbinary)")
    if killed:
        return warn(*killed, expected="fewer jobs")
    given = numbers(variable(s, "MAX_JOBS"))
    # Without the variable vLLM's setup.py takes one job for each CPU.
    jobs = given or ((s.cpu.count,) if s.cpu and s.project and s.project.vllm_source else ())
    if not jobs or s.memory is None:
        return ok(("MAX_JOBS", variable(s, "MAX_JOBS") or "not set"))
    threads = numbers(variable(s, "NVCC_THREADS")) or (1,)
    # vLLM's setup.py divides: jobs = MAX_JOBS // NVCC_THREADS.
    needed = max(1, jobs[0] // threads[0]) * _GIB_A_JOB
    said = str(jobs[0]) if given else f"not set: {jobs[0]} jobs"
    seen = (("MAX_JOBS", f"{said}, NVCC_THREADS {threads[0]}"), ("/proc/meminfo", f"MemAvailable {s.memory.available_gib:.0f} GiB"))
    fits = max(1, int(s.memory.available_gib // _GIB_A_JOB))
    if needed > s.memory.available_gib and jobs[0] > fits:
        return warn(*seen, expected=f"{fits} jobs at most", commands=(f"export MAX_JOBS={fits}",))
    return ok(*seen)


@check("EB-BUILD-007", "wheels-dir-stale", Severity.WRONG_RESULT, needs=("project",))
def stale_wheels(s: Snapshot) -> Verdict:
    several = _project(s).wheel_versions
    if not several:
        return ok("no wheels of several versions in ./wheels")
    return warn(
        *(("./wheels", f"{name}: {' and '.join(versions)}") for name, versions in list(several.items())[:3]), expected="one version of each"
    )


@check("EB-BUILD-008", "wheel-mix-flashinfer-gone", Severity.WRONG_RESULT, needs=("project",))
def unknown_commits(s: Snapshot) -> Verdict:
    names = _project(s).build_metadata_unknown
    return (
        warn(*(("build-metadata.yaml", f"{name}: unknown") for name in names[:3]), expected="the commit of each part")
        if names
        else ok("every part's commit is known, or not recorded")
    )


@check("EB-BUILD-009", "build-tools-missing", Severity.BLOCKS, needs=("project", "compilers"))
def tools_missing(s: Snapshot) -> Verdict:
    if not _project(s).vllm_source or s.compilers is None:
        return skip("no vLLM source here")
    lacking = [
        label
        for label, found in (
            ("a C++ compiler", s.compilers.cxx),
            ("git", s.compilers.git),
            ("cmake", s.compilers.cmake),
            ("ninja", s.compilers.ninja),
        )
        if not found
    ]
    if "a C++ compiler" in lacking:
        return warn(("PATH", f"no {', no '.join(lacking)}"), expected="all of them")
    return (
        info(("PATH", f"no {', no '.join(lacking)}"), note="pip brings cmake and ninja for an isolated build.")
        if lacking
        else ok("compiler, git, cmake and ninja")
    )


@check("EB-BUILD-010", "compiler-variable-wrong", Severity.BLOCKS, needs=("compilers",))
def compiler_variable(s: Snapshot) -> Verdict:
    lost = [entry.partition("=") for entry in (s.compilers.lost_programs if s.compilers else ()) if not entry.startswith("TRITON_")]
    seen = [(name, f"{path}: not there") for name, _, path in lost]
    closed = [name for name in (s.compilers.not_executable if s.compilers else ()) if not name.startswith("TRITON_")]
    seen += [(name, f"{variable(s, name)}: not executable") for name in closed]
    if not seen:
        return ok("CC, CXX and CUDACXX, where set, lead somewhere")
    return fail(*seen, expected="a compiler that is there", commands=(f"unset {' '.join(name for name, _ in seen)}",))


@check("EB-BUILD-011", "cpu-quota-and-jobs", Severity.SLOW, needs=("cpu", "variables"))
def many_jobs(s: Snapshot) -> Verdict:
    jobs = numbers(variable(s, "MAX_JOBS"))
    count = s.cpu.count if s.cpu else 0
    if not jobs or not count:
        return ok(("MAX_JOBS", variable(s, "MAX_JOBS") or "not set"))
    seen = ("MAX_JOBS", f"{jobs[0]} on {count} CPUs")
    return info(seen, note="More jobs than CPUs cost memory and gain nothing.") if jobs[0] > 2 * count else ok(seen)


only_in_logs("EB-BUILD-012", "vllm-wheel-platform-tag", Severity.BLOCKS)
only_in_logs("EB-BUILD-013", "disk-full", Severity.BLOCKS)
only_in_logs("EB-BUILD-014", "download-failed", Severity.BLOCKS)
only_in_logs("EB-BUILD-015", "hash-mismatch", Severity.WRONG_RESULT)
