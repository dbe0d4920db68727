"""Runs under the emulated interpreter: import torch, then open each file as Python would, each in a child of its own."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

import torch

_CHUNK = 65536


def attempt(path: str) -> str:
    """Return "ok", what the loader says, or how the child died (in an initializer: then it had been linked)."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            ctypes.CDLL(path)  # RTLD_NOW | RTLD_LOCAL, as the interpreter opens extensions
            said = "ok"
        except OSError as error:
            said = str(error)
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    said = b""
    while piece := os.read(reading, _CHUNK):
        said += piece
    os.close(reading)
    _, status = os.waitpid(child, 0)
    return said.decode() or f"died: {status}"


def main() -> None:
    listing, goal = map(Path, sys.argv[1:])
    results = {path: attempt(path) for path in json.loads(listing.read_text())}
    goal.write_text(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "results": results}))


main()
