"""One process at a time, in a place where several may be asked to work."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import filelock

from envbuilder.files import storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envbuilder.console import Console


@contextlib.contextmanager
def alone(lock: Path, console: Console, busy: str) -> Iterator[None]:
    """Hold a lock file for this process. While another holds it, say what keeps it `busy`, once, and wait. Raises StorageError."""
    with storage_errors(lock.parent):
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(lock)
        try:
            held.acquire(timeout=0)
        except filelock.Timeout:
            console.line(f"{busy}; waiting for it to end …")
            held.acquire()
    try:
        yield
    finally:
        held.release()
