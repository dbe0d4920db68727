"""Names of symbols: demangling, and to whom a name belongs (torch, CUDA, the C++ runtime, an extension itself).

Ownership is read from the mangled name, whose first nested name is the owner; what follows are arguments, which say
nothing: `_Z9my_kernelN2at6TensorE` is not torch's. (Itanium C++ ABI, chapter 5.1.)
"""

from __future__ import annotations

import functools
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_MAX_MANGLED = 8192  # longer names (CUTLASS kernels) tell a reader nothing, and the demangler recurses
_SPECIAL = r"_Z(?:T[VTIS]|T[hv]n?\d+_(?:n?\d+_)?|Tc\w*?_|GV|GR|TW|TH)?"
# A `Z` before the name: what is local to a function, whose owner is the function's.
_TORCH_NAMESPACE = _SPECIAL + r"Z*N[rVKRO]*(?:2at|3c10|4c10d|5torch|6caffe2)(?=[0-9A-Za-z])"
# Outside torch's namespaces: C functions, those of its Python binding (in C++, so mangled, but in no namespace), and
# pybind11's casters for torch's types, which libtorch_python alone defines. The projects that libtorch_cpu has in it
# (fbgemm, gloo, onnx) are not torch's: an extension may bring its own of each.
_TORCH_OTHER_NAME = (
    rf"aoti_torch_|torch_|(?:{_SPECIAL}(?:N[rVKRO]*)?\d+)?TH[PC]|_ZNK?8pybind116detail11type_casterIN(?:2at|3c10|5torch)(?=\d)"
)
_CUDA_C_NAME = r"(?:__)?(?:cuda|cublas|cusparse|cusolver|cudnn|cufft|curand|nccl|nvrtc|nvJitLink|cufile|cuFile|nvshmem|cupti)(?:Lt)?[A-Z_]"
_RUNTIME = (
    _SPECIAL
    + r"(?:N[rVKRO]*)?(?:S[tabsiod]|9__gnu_cxx|10__cxxabiv1)|_Z(?:n[wa]|d[la])|_ZT[IS]P?K?[a-z]$|__cxa_|__gxx_|__dynamic_cast$|__once_proxy$|_Unwind_"
)
_TORCH_INSIDE = r"2at\d|3c10\d|5torch\d|6caffe2\d"


def demangle(names: Iterable[str]) -> dict[str, str]:
    """Return each name in C++ spelling; what cannot be demangled (C names, or no libstdc++ here) stays as it is."""
    names = list(names)
    function = _demangler() if names else None
    return {name: function(name) if function and name.startswith("_Z") and len(name) <= _MAX_MANGLED else name for name in names}


def owned_by_torch(name: str) -> bool:
    return (re.match(_TORCH_NAMESPACE, name) or re.match(_TORCH_OTHER_NAME, name)) is not None


def owned_by_cuda(name: str) -> bool:
    """Tell whether a name is from the CUDA toolkit's libraries (not the driver's libcuda)."""
    return re.match(_CUDA_C_NAME, name) is not None


@functools.lru_cache(1 << 16)
def owned_by_runtime(name: str) -> bool:
    """Tell whether a name is from libstdc++ or libgcc. Files linked without naming them leave it without version."""
    return re.match(_RUNTIME, name) is not None and re.search(_TORCH_INSIDE, name) is None


def about_cuda(name: str) -> bool:
    """Tell whether a torch symbol exists only in a torch that is built with CUDA."""
    return "cuda" in name.lower()


def old_cxx11(name: str) -> bool:
    """Tell whether a C++ name speaks of the std::string from before GCC 5 (mangled `Ss`; _GLIBCXX_USE_CXX11_ABI=0)."""
    return name.startswith("_Z") and "Ss" in _without_identifiers(name)


def _without_identifiers(name: str) -> str:
    """Return a mangled name without its length-prefixed identifiers, in which any letters may stand."""
    rest: list[str] = []
    at = 0
    while at < len(name):
        digits = re.compile(r"\d+").match(name, at)
        if digits and not (rest and rest[-1] in {"S", "T", "L"}):
            at = digits.end() + int(digits[0][:6])
            rest.append(" ")
        else:
            rest.append(name[at])
            at += 1
    return "".join(rest)


@functools.cache
def _demangler() -> Callable[[str], str] | None:
    """Return libstdc++'s own demangler (__cxa_demangle, Itanium C++ ABI 3.4), or None on a machine without it."""
    import ctypes  # noqa: PLC0415 - where nothing is missing, there is nothing to demangle

    try:
        function = ctypes.CDLL("libstdc++.so.6")["__cxa_demangle"]
        free = ctypes.CDLL(None)["free"]
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_int)]
    free.argtypes = [ctypes.c_void_p]

    def call(name: str) -> str:
        status = ctypes.c_int()
        pointer = function(name.encode("latin-1"), None, None, ctypes.byref(status))
        if not pointer:
            return name
        try:
            return ctypes.string_at(pointer).decode("utf-8", "replace")
        finally:
            free(pointer)

    return call
