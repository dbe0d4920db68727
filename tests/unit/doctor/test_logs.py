"""Logs: every failure of the corpus that shows itself in one is recognised, in bounded memory, and nothing else is."""

from __future__ import annotations

import io
import random
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envbuilder.cli import main
from envbuilder.doctor.logs import examine_log, match_log, recognised
from envbuilder.doctor.model import Status
from envbuilder.doctor.registry import all_checks
from envbuilder.doctor.signatures import SIGNATURES

if TYPE_CHECKING:
    from pathlib import Path

# The lines as public threads show them, and the id that each one is.
LINES = {
    "EB-ABI-001": "ImportError: /venv/lib/python3.12/site-packages/vllm/_C.abi3.so: undefined symbol: _ZN3c1013MessageLoggerC1EPKciib",
    "EB-ABI-002": "ImportError: vllm/_C.abi3.so: undefined symbol: _ZN5torch3jit17parseSchemaOrNameERKSsb",
    "EB-ABI-003": "_C.abi3.so: undefined symbol: _Z24silu_and_mul_nvfp4_quantRN2at6TensorES1_S1_S1_",
    "EB-ABI-006": "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
    "EB-ABI-007": "ImportError: libcudart.so.13: cannot open shared object file: No such file or directory",
    "EB-ABI-011": "ImportError: libcublas.so.13: cannot open shared object file: No such file or directory",
    "EB-ABI-013": "OSError: libtorch_cuda.so: cannot open shared object file: No such file or directory",
    "EB-CTR-018": "E1204 18:29:54.725748 main.go:123] error starting plugins: error getting device memory: Not Supported",
    "EB-TORCH-001": "AssertionError: Torch not compiled with CUDA enabled",
    "EB-TORCH-005": "Found GPU0 NVIDIA GB10 which is of cuda capability 12.1.",
    "EB-TORCH-006": "Your installed torch==2.13.0+cu130 does not include kernels for this GPU.",
    "EB-TORCH-007": "RuntimeError: operator torchvision::nms does not exist",
    "EB-TORCH-009": "CUDA error: no kernel image is available for execution on the device",
    "EB-GPU-001": "NotImplementedError: No compiled cutlass_scaled_mm for a compute capability less than CUDA device capability: 121",
    "EB-GPU-003": "-- CUDA supported target architectures: 12.0",
    "EB-TRI-001": "PTXASError: ptxas fatal   : Value 'sm_121a' is not defined for option 'gpu-name'",
    "EB-TRI-002": "ptxas-blackwell fatal   : Value 'sm_110a' is not defined for option 'gpu-name'",
    "EB-TRI-003": "cuda_utils.c:5:10: fatal error: Python.h: No such file or directory",
    "EB-TRI-004": "RuntimeError: Failed to find C compiler. Please specify via CC environment variable.",
    "EB-TRI-006": "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 131072, Hardware limit: 101376",
    "EB-CUDA-001": "nvcc fatal   : Unsupported gpu architecture 'compute_121a'",
    "EB-BUILD-002": "ptxas /tmp/x.ptx, line 2; error : Instruction 'cvt with .e2m1x2' not supported on .target 'sm_121'",
    "EB-DRV-031": "RuntimeError: CUDA error: the provided PTX was compiled with an unsupported toolchain.",
    "EB-BUILD-004": "LookupError: setuptools-scm was unable to detect version for /src/vllm.",
    "EB-VLLM-010": "Successfully built vllm-0.1.dev1+g0fc695f-cp312-cp312-linux_aarch64.whl",
    "EB-BUILD-005": "ModuleNotFoundError: No module named 'setuptools_rust'",
    "EB-BUILD-006": "c++: fatal error: Killed signal terminated program cc1plus",
    "EB-MEM-011": "Out of memory: Killed process 4711 (VLLM::EngineCor) total-vm:123kB",
    "EB-BUILD-012": "hint: no wheels with a matching platform tag (e.g., `manylinux_2_39_aarch64`)",
    "EB-BUILD-007": "Requirements contain conflicting URLs for package `flashinfer-cubin`: a.whl b.whl",
    "EB-BUILD-008": "build_flashinfer_commit: unknown",
    "EB-BUILD-013": "OSError: [Errno 28] No space left on device",
    "EB-BUILD-014": "ssl.SSLCertVerificationError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed",
    "EB-BUILD-015": "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
    "EB-VLLM-009": "RuntimeWarning: Failed to read commit hash: No module named 'vllm._version'",
    "EB-VLLM-005": "This kernel only supports sm120. cudaErrorLaunchFailure: unspecified launch failure",
    "EB-VLLM-006": "RuntimeError: [FP4 gemm Runner] Failed to run cutlass FP4 gemm on sm120. Error: Error Internal",
    "EB-VLLM-016": "Your GPU does not have native support for FP4 computation but FP4 quantization is being used.",
    "EB-VLLM-017": "CutlassFp8BlockScaledMMKernel failed on SM12.1",
    "EB-VLLM-018": "RuntimeError: cooperative_topk launch failed: invalid argument",
    "EB-VLLM-019": "RuntimeError: mat1 and mat2 shapes cannot be multiplied (8x3840 and 5632x1024)",
    "EB-VLLM-020": "UserWarning: GDS is not supported in this platform but nogds is False. use nogds=True",
    "EB-VLLM-021": "RuntimeError: Failed to infer device type",
    "EB-VLLM-022": "OSError: [Errno 98] Address already in use",
    "EB-VLLM-023": "ValueError: No available memory for the cache blocks.",
    "EB-VLLM-024": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    "EB-FI-001": "RuntimeError: flashinfer-cubin version (0.6.13) does not match flashinfer version (0.6.14).",
    "EB-FI-002": "RuntimeError: cudaErrorInsufficientDriver (35) in sampler",
    "EB-FI-004": "RuntimeError: No supported CUDA architectures found for major versions [10].",
    "EB-FI-008": "Error in function 'TllmGenFmhaRunner' at fmha.cuh:12: Unsupported architecture",
    "EB-TF-001": "ValueError: The checkpoint you are trying to load has model type `gemma4_unified` but Transformers does not recognize this architecture.",
    "EB-VLLM-001": "Model architectures ['Gemma4UnifiedForConditionalGeneration'] are not supported for now.",
    "EB-TF-002": "transformers.AmbiguousGlobalPerLayerAttributeError: head_dim differs between layers",
    "EB-TF-006": "You are using a model of type `gemma4_unified` to instantiate a model of type ``.",
    "EB-TF-003": "ImportError: tokenizers>=0.22,<=0.23.0 is required for a normal functioning of this module, but found tokenizers==0.23.1.",
    "EB-TF-004": "KeyError: 'qwen3_5_moe'",
    "EB-LLMC-001": "ImportError: cannot import name 'TORCH_INIT_FUNCTIONS' from 'transformers.modeling_utils'",
    "EB-LLMC-003": "llmcompressor depends on compressed-tensors==0.17.1 and vllm depends on compressed-tensors==0.17.0",
    "EB-CKPT-001": "safetensors_rust.SafetensorError: Error while deserializing header: invalid JSON in header: EOF while parsing a value",
    "EB-CKPT-002": "Cannot access gated repo for url https://huggingface.co/google/gemma-4",
    "EB-MEM-005": "ValueError: Free memory on device cuda:0 (98.9/121.7 GiB) on startup is less than desired GPU memory utilization (0.87, 105.9 GiB).",
    "EB-MEM-016": "TimeoutError: RPC call to sample_tokens timed out.",
    "EB-DRV-006": "Failed to initialize NVML: Driver/library version mismatch",
    "EB-DRV-007": "NVRM: GPU0 Cannot initialize GSP firmware RM",
    "EB-DRV-008": "No devices were found",
    "EB-DRV-018": "NVRM: Xid (PCI:000f:01:00): 79, GPU has fallen off the bus.",
    "EB-DRV-019": "NVRM: Check failed: Out of memory [NV_ERR_NO_MEMORY] (0x00000051) returned from _memdescAllocInternal",
    "EB-DRV-020": "NVRM: Xid (PCI:000f:01:00): 119, Timeout after 6s",
    "EB-CTR-001": "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock",
    "EB-CTR-004": "docker: Error response from daemon: unknown or invalid runtime name: nvidia",
    "EB-CTR-010": "Failed to initialize NVML: Unknown Error",
    "EB-CTR-013": "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
    "EB-CTR-017": "exec /usr/bin/bash: exec format error",
    "EB-MACH-003": "NCCL WARN Call to ibv_reg_mr_iova2 failed with error Cannot allocate memory",
    "EB-MACH-014": "mlx5_core 0000:01:00.0: Detected insufficient power on the PCIe slot (27W).",
    "EB-PKG-011": "ImportError: Numba needs NumPy 2.2 or less. Got NumPy 2.3.",
    "EB-PKG-013": "AttributeError: '_IncludedRouter' object has no attribute 'path'",
    "EB-VLLM-003": "WARNING Unknown vLLM environment variable detected: VLLM_FOO",
    "EB-ENV-018": "OSError: /lib/libc.so.6: version `GLIBC_2.38' not found (required by vllm/_C.abi3.so)",
    "EB-VAR-002": "RuntimeError: CUDA driver is a stub library",
}
INNOCENT = """\
INFO 11-23 10:00:00 [api_server.py:1774] vLLM API server version 0.23.0
INFO Loading safetensors checkpoint shards: 100% Completed | 3/3
INFO Using AttentionBackendEnum.TRITON_ATTN backend.
INFO Available KV cache memory: 88.1 GiB
INFO GPU KV cache size: 1,234,567 tokens
[100/359] Building CUDA object CMakeFiles/_C.dir/csrc/quantization/fp4/nvfp4_quant_kernels.cu.o
-- CUDA target architectures: 12.1a
WARNING: The NVML library is old but works
Successfully installed vllm-0.23.0 torch-2.11.0 numpy-2.2.6
INFO: Application startup complete.
W1204 18:29:54.725748 Ignoring error getting device memory: Not Supported
"""


def ids(text: str) -> list[str]:
    return [match.id for match in match_log(io.BytesIO(text.encode()))]


@pytest.mark.parametrize("id", LINES)
def test_the_line_of_a_failure_is_recognised(id: str) -> None:
    assert id in ids(f"{INNOCENT}{LINES[id]}\n{INNOCENT}")


@pytest.mark.parametrize("id", LINES)
def test_it_comes_first_where_it_is_alone(id: str) -> None:
    """A line that several signatures fit must be called by the right one's name."""
    assert ids(LINES[id])[0] == id


def test_an_innocent_log_is_innocent() -> None:
    assert ids(INNOCENT) == []


def test_what_only_logs_show_has_a_signature() -> None:
    """Such an id without a signature could never be found by anyone."""
    assert {check.id for check in all_checks().values() if check.judge is None} <= {signature.id for signature in SIGNATURES}


def test_every_signature_is_of_a_known_id_and_finds_its_own_text() -> None:
    for signature in SIGNATURES:
        assert signature.id in all_checks()
        assert signature.needle


def test_the_cause_stands_first_and_what_follows_is_folded() -> None:
    log = "\n".join([LINES["EB-VLLM-021"], LINES["EB-MEM-016"], LINES["EB-DRV-006"], LINES["EB-VLLM-016"]])
    findings = examine_log(io.BytesIO(log.encode()), name="serve.log").findings
    assert (findings[0].check.id, findings[0].verdict.evidence[0].source) == ("EB-DRV-006", "serve.log:3")
    assert {finding.check.id: finding.explained_by for finding in findings}["EB-VLLM-021"] == "EB-DRV-006"
    assert findings[-1].status is Status.INFO


def test_the_lines_are_counted_and_the_first_ones_kept() -> None:
    log = f"{INNOCENT}{LINES['EB-TRI-003']}\n" * 50
    match = match_log(io.BytesIO(log.encode()))[0]
    assert (match.count, len(match.lines)) == (50, 3)
    assert match.lines[1][0] - match.lines[0][0] == INNOCENT.count("\n") + 1


@given(st.integers(min_value=1, max_value=5000), st.integers(min_value=0, max_value=200))
def test_a_line_at_the_seam_of_two_pieces_is_found_once(piece: int, before: int) -> None:
    log = (b"x" * 37 + b"\n") * before + LINES["EB-DRV-006"].encode() + b"\n" + b"y" * 100

    class Dribble(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(piece, size or piece))

    matches = match_log(Dribble(log))
    assert [(match.id, match.count, match.first) for match in matches] == [("EB-DRV-006", 1, before + 1)]


def test_a_long_log_takes_little_memory() -> None:
    """The log of a build that ran for hours must not be held; bench/doctor.py reads one of 200 MB."""
    block = (INNOCENT * 200).encode()

    class Long(io.RawIOBase):
        left = 4_000_000 // len(block)  # four times what may be taken

        def read(self, size: int = -1) -> bytes:
            self.left -= 1
            return block if self.left > 0 else b"" if self.left < 0 else LINES["EB-DRV-006"].encode()

    tracemalloc.start()
    matches = match_log(Long())  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [match.id for match in matches] == ["EB-DRV-006"]
    assert peak < 1_000_000


def test_binary_files_and_lines_without_end_are_no_danger(tmp_path: Path) -> None:
    noise = random.Random(7).randbytes(3_000_000)
    path = tmp_path / "core.bin"
    path.write_bytes(noise + b"A" * 5_000_000 + LINES["EB-DRV-006"].encode() + b"B" * 3_000_000)
    assert main(["doctor", "--log", str(path)]) == 1
    path.write_bytes(noise)
    assert main(["doctor", "--log", str(path)]) == 0


@given(st.binary(max_size=2000))
def test_no_bytes_break_it(data: bytes) -> None:
    for match in match_log(io.BytesIO(data)):
        assert match.count


def test_a_log_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    assert main(["doctor", "--log", str(tmp_path / "none.log")]) == 2


def test_secrets_in_a_log_are_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "serve.log"
    path.write_text("HF_TOKEN=hf_abcdefghijklmnop /home/alice/x: OSError: [Errno 28] No space left on device, from 192.168.77.5\n")
    main(["doctor", "--log", str(path)])
    out = capsys.readouterr().out
    assert "No space left" in out
    assert not any(secret in out for secret in ("hf_abcdefghijklmnop", "alice", "192.168.77.5"))


def test_a_failed_step_can_say_what_its_log_shows(tmp_path: Path) -> None:
    path = tmp_path / "serve.log"
    path.write_text(f"{INNOCENT}{LINES['EB-TRI-003']}\n{LINES['EB-VLLM-021']}\n")
    said = recognised(path)
    assert len(said) == 1
    assert said[0].startswith("EB-TRI-003 triton-python-h (serve.log:12): ")
    assert recognised(tmp_path / "none.log") == []
