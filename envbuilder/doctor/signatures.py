"""What failures look like in logs: for each, a text that must occur in its line, and a pattern for the line.

The text is looked for first, in large pieces of the log at once; only lines that hold it meet the pattern. Sources:
the threads that the pages name.
"""

from __future__ import annotations

import re

from envbuilder.values import value


@value
class Signature:
    """`needle` is a plain text in every matching line; `root` is lower for causes than for what follows from them."""

    id: str
    needle: bytes
    pattern: re.Pattern[bytes]
    root: int
    harmless: bool


def _s(id: str, needle: str, pattern: str = "", *, root: int = 5, harmless: bool = False) -> Signature:
    compiled = re.compile((pattern or re.escape(needle)).encode(), re.IGNORECASE if pattern else 0)
    return Signature(id=id, needle=needle.encode(), pattern=compiled, root=root, harmless=harmless)


SIGNATURES: tuple[Signature, ...] = (
    # What stops everything below it comes first.
    _s("EB-DRV-006", "Driver/library version mismatch", root=0),
    _s("EB-DRV-007", "GSP", r"Cannot initialize GSP firmware RM|RPC response from GPU\d+ GSP", root=0),
    _s("EB-DRV-008", "No devices were found", root=1),
    _s("EB-DRV-018", "Xid", r"Xid[^:]*(?:\([^)]*\))?: (?:48|62|74|79|94|95|120|154)\b", root=0),
    _s("EB-DRV-020", "Xid", r"Xid[^:]*(?:\([^)]*\))?: 119\b", root=1),
    _s("EB-DRV-019", "NV_ERR_NO_MEMORY", root=1),
    _s("EB-DRV-030", "driver on your system is too old", root=0),
    _s("EB-DRV-031", "unsupported toolchain", r"unsupported toolchain|UnsupportedPtxVersion", root=1),
    _s("EB-DRV-031", "UnsupportedPtxVersion", root=1),
    _s("EB-DRV-029", "NVML", r"Failed to initialize NVML(?!: (?:Driver/library|Unknown Error))|Can't initialize NVML", root=3),
    _s("EB-CTR-010", "Failed to initialize NVML: Unknown Error", root=1),
    _s("EB-CTR-004", "nvidia.com/gpu", r"no nvidia\.com/gpu CDI spec|unresolvable CDI devices? nvidia\.com/gpu", root=1),
    _s("EB-CTR-004", "invalid runtime name: nvidia", root=1),
    _s("EB-CTR-004", "could not select device driver", root=1),
    _s("EB-CTR-001", "Docker daemon socket", r"permission denied while trying to connect to the Docker daemon socket", root=0),
    _s("EB-CTR-013", "Cannot connect to the Docker daemon", root=1),
    _s("EB-CTR-017", "exec format error", root=0),
    _s("EB-CTR-017", "Exec format error", root=0),
    _s("EB-CTR-018", "rror getting device memory: Not Supported", r"(?<!Ignoring )error getting device memory: Not Supported", root=1),
    _s("EB-CTR-009", "NVIDIA Driver was not detected", root=1),
    _s("EB-BUILD-013", "No space left on device", root=0),
    _s("EB-BUILD-014", "Max retries exceeded", root=3),
    _s("EB-BUILD-014", "CERTIFICATE_VERIFY_FAILED", root=2),
    _s("EB-BUILD-014", "Temporary failure in name resolution", root=2),
    _s("EB-BUILD-015", "THESE PACKAGES DO NOT MATCH THE HASHES", root=1),
    _s("EB-BUILD-015", "Hash mismatch", r"Hash mismatch for", root=1),
    _s("EB-BUILD-012", "matching platform tag", r"no wheels? with a matching platform tag", root=1),
    _s("EB-ENV-018", "GLIBC", r"version `?GLIBC(?:XX)?_[\d.]+'? not found", root=1),
    _s(
        "EB-ENV-014",
        "No module named",
        r"ModuleNotFoundError: No module named '(?!setuptools_rust|vllm\._version|flash_attn_2_cuda|encodings)",
        root=6,
    ),
    _s("EB-VAR-006", "No module named 'encodings'", root=0),
    _s("EB-PKG-012", "flash_attn_2_cuda", r"No module named '?flash_attn_2_cuda", root=2),
    _s("EB-ENV-009", "file too short", root=1),
    _s("EB-DISK-004", "failed to map segment from shared object", root=1),
    # ABI.
    _s("EB-ABI-002", "undefined symbol", r"undefined symbol: _ZN(?:K?(?:2at|3c10|5torch))\S*(?-i:RKSs|ESs|Ss[ESb])", root=2),
    _s("EB-ABI-001", "undefined symbol", r"undefined symbol: _ZN?K?(?:2at|3c10|5torch)(?!\S*(?-i:RKSs|ESs|Ss[ESb]))", root=2),
    _s("EB-ABI-003", "undefined symbol", r"undefined symbol: _Z(?!N?K?(?:2at|3c10|5torch|NSt))\w+", root=2),
    _s("EB-ABI-006", "libcudart.so.12", r"libcudart\.so\.12: cannot open", root=2),
    _s("EB-ABI-007", "libcudart.so.13", r"libcudart\.so\.13: cannot open", root=2),
    _s("EB-ABI-013", "libtorch_cuda.so", r"libtorch_cuda\.so: cannot open", root=2),
    _s(
        "EB-ABI-011",
        "cannot open shared object file",
        r"lib(?:cublas|cudnn|cusparse|nvrtc|nccl|cufft|nvJitLink)\w*\.so[.\d]*: cannot open",
        root=3,
    ),
    # torch and its companions.
    _s("EB-TORCH-001", "Torch not compiled with CUDA enabled", root=1),
    _s("EB-TORCH-005", "Minimum and Maximum cuda capability", r"\(8\.0\) ?- ?\(12\.[01]\)|capability 12\.1", harmless=True),
    _s("EB-TORCH-005", "which is of cuda capability 12.1", harmless=True),
    _s("EB-TORCH-006", "does not include kernels for this GPU", harmless=True),
    _s("EB-TORCH-007", "torchvision::nms", r"operator torchvision::nms does not exist", root=2),
    _s("EB-TORCH-009", "no kernel image is available", root=2),
    _s("EB-PKG-011", "Numba needs NumPy", root=2),
    _s("EB-PKG-013", "_IncludedRouter", root=3),
    # Triton and FlashInfer.
    _s("EB-TRI-002", "ptxas-blackwell", r"ptxas-blackwell\s*fatal.*is not defined for option 'gpu-name'", root=1),
    _s("EB-TRI-001", "ptxas", r"ptxas\s*fatal.*Value 'sm_12\da?f?' is not defined for option 'gpu-name'", root=1),
    _s("EB-TRI-003", "Python.h", r"Python\.h: No such file", root=1),
    _s("EB-TRI-004", "Failed to find C compiler", root=1),
    _s("EB-TRI-006", "out of resource: shared memory", root=2),
    _s("EB-FI-001", "does not match flashinfer version", root=1),
    _s("EB-FI-002", "cudaErrorInsufficientDriver", root=2),
    _s("EB-FI-003", "FlashInfer", r"FlashInfer.*(?:requires|needs).*(?:nvcc|CUDA).*12\.[89]|FlashInfer JIT.*fail", root=3),
    _s("EB-FI-004", "No supported CUDA architectures found for major versions", root=2),
    _s(
        "EB-FI-008",
        "TllmGenFmhaRunner",
        r"TllmGenFmhaRunner.*Unsupported architecture|Unsupported architecture.*TllmGen|Error in function 'TllmGenFmhaRunner'",
        root=2,
    ),
    # Building.
    _s("EB-CUDA-001", "Unsupported gpu architecture", r"nvcc fatal\s*:\s*Unsupported gpu architecture 'compute_12", root=1),
    _s("EB-BUILD-002", "e2m1x2", r"cvt with \.e2m1x2' not supported", root=1),
    _s("EB-GPU-003", "CUDA supported target architectures: 12.0", harmless=True),
    _s("EB-GPU-001", "No compiled", r"No compiled cutlass_scaled_mm for a compute capability less than CUDA device capability", root=2),
    _s("EB-GPU-001", "CUDA supported target architectures:", r"CUDA supported target architectures:\s*$", root=1),
    _s("EB-BUILD-004", "setuptools-scm was unable to detect version", root=1),
    _s("EB-VLLM-010", "vllm-0.1.dev", r"vllm-0\.1\.dev\d+\+g", root=3),
    _s("EB-BUILD-005", "No module named 'setuptools_rust'", root=1),
    _s(
        "EB-BUILD-006",
        "Killed",
        r"^(?:.*: )?(?:nvcc|cicc|ptxas|c\+\+|g\+\+|ninja|gmake|.*cc1plus).*\bKilled\b|^Killed\s*$|fatal error: Killed signal terminated program",
        root=2,
    ),
    _s("EB-BUILD-006", "Out of memory: Killed process", r"Killed process \d+ \((?:cc1plus|cicc|nvcc|ptxas|ninja)", root=1),
    _s("EB-MEM-011", "Killed process", r"Killed process \d+ \((?:python|VLLM|vllm|pt_main|ray)", root=1),
    _s("EB-BUILD-007", "conflicting URLs for package", root=1),
    _s("EB-BUILD-008", "build_flashinfer_commit: unknown", root=2),
    # Models and versions.
    _s("EB-TF-001", "gemma4", r"model type [`'\"]?gemma4\w*[`'\"]? but Transformers does not recognize", root=2),
    _s("EB-CTR-012", "gemma4", r"nvcr\.io/nvidia/vllm:25\.(?:0\d|1[01]).*gemma4", root=2),
    _s("EB-TF-004", "KeyError: '", r"KeyError: '(?:qwen3|gemma4|glm|deepseek|minimax|kimi|gpt_oss|nemotron)\w*'", root=3),
    _s(
        "EB-TF-004",
        "Transformers does not recognize this architecture",
        r"model type [`'\"]?(?!gemma4)\w+[`'\"]? but Transformers does not recognize",
        root=3,
    ),
    _s("EB-VLLM-001", "are not supported for now", r"Model architectures \[.*\] are not supported for now", root=3),
    _s("EB-TF-002", "AmbiguousGlobalPerLayerAttributeError", root=2),
    _s(
        "EB-TF-006",
        "to instantiate a model of type",
        r"of type [`'\"]?gemma4_unified[`'\"]? to instantiate a model of type [`'\"]{2}",
        root=3,
    ),
    _s(
        "EB-TF-003",
        "is required for a normal functioning of this module",
        r"(?:tokenizers|huggingface-hub|safetensors)[<>=!~].*is required for a normal functioning",
        root=2,
    ),
    _s("EB-TF-003", "tokenizers", r"tokenizers.*huggingface-hub.*version conflict|tokenizers/huggingface-hub version conflict", root=3),
    _s("EB-LLMC-001", "TORCH_INIT_FUNCTIONS", root=2),
    _s("EB-LLMC-003", "compressed-tensors", r"(?:compressed-tensors==0\.\d+\.\d+.*){2}|No solution.*llmcompressor", root=2),
    _s("EB-CKPT-002", "gated repo", r"Cannot access gated repo|gated repo for url", root=1),
    _s("EB-CKPT-001", "Error while deserializing header", root=1),
    _s("EB-TORCH-002", "is not reachable", r"tool\.uv\.sources.*torch.*(?:ignored|not a direct)", root=3),
    # vLLM at run time.
    _s("EB-VLLM-003", "Unknown vLLM environment variable detected", root=6),
    _s("EB-VLLM-009", "No module named 'vllm._version'", root=2),
    _s("EB-VLLM-005", "This kernel only supports sm120", root=2),
    _s("EB-VLLM-006", "Failed to run cutlass FP4 gemm on sm120", root=2),
    _s("EB-VLLM-016", "does not have native support for FP4 computation", harmless=True),
    _s(
        "EB-VLLM-017",
        "CutlassFp8BlockScaledMMKernel",
        r"CutlassFp8BlockScaledMMKernel.*(?:fail|unsupported|not supported|error)|(?:fail|error).*CutlassFp8BlockScaledMMKernel",
        root=3,
    ),
    _s("EB-VLLM-018", "cooperative_topk launch failed", root=2),
    _s("EB-VLLM-019", "5632", r"(?:pre_projection|shape|mat1|size).*(?<!\d)5632(?!\d)", root=3),
    _s("EB-VLLM-020", "nogds", r"GDS is not supported in this platform but nogds is False", harmless=True),
    _s("EB-VLLM-021", "Failed to infer device type", root=4),
    _s("EB-VLLM-022", "Address already in use", r"address already in use", root=2),
    _s("EB-VLLM-022", "address already in use", root=2),
    _s(
        "EB-VLLM-023",
        "KV cache",
        r"larger than the maximum number of tokens that can be stored in KV cache|No available memory for the cache blocks|KV cache is needed, which is larger than",
        root=3,
    ),
    _s("EB-VLLM-023", "No available memory for the cache blocks", root=3),
    _s("EB-VLLM-024", "CUDA out of memory", root=3),
    _s("EB-VLLM-011", "fix misalignment", r"wait_io: fix misalignment", root=3),
    _s("EB-MEM-005", "is less than desired GPU memory utilization", root=2),
    _s("EB-MEM-016", "RPC call to sample_tokens timed out", root=4),
    _s("EB-MEM-016", "No available shared memory broadcast block", root=4),
    _s("EB-MEM-009", "Ray", r"worker.*killed.*(?:OOM|memory pressure)|Workers \(tasks / actors\) killed due to memory pressure", root=3),
    _s("EB-MACH-003", "ibv_reg_mr_iova2", root=2),
    _s("EB-MACH-014", "insufficient power on the PCIe slot", harmless=True),
    _s("EB-VAR-001", "No CUDA GPUs are available", root=4),
    _s("EB-VAR-002", "CUDA driver is a stub library", root=1),
    _s("EB-CTR-014", "Bus error", r"DataLoader worker.*Bus error|insufficient shared memory", root=3),
    _s("EB-DRV-015", "CUDA unknown error", r"CUDA unknown error - this may be due to an incorrectly set up environment", root=4),
    _s("EB-DRV-021", "system not yet initialized", root=1),
    _s("EB-VAR-003", "unsupported display driver / cuda driver combination", root=1),
    _s("EB-MEM-015", "profile_run", r"profile_run.*(?:available memory|host hang|watchdog)", root=4),
)
