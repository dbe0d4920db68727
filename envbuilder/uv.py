"""uv, the program: found beside this interpreter, run without settings of its own unless they are given.

uv resolves, locks and installs. What it may reach is always said on the command line (`--no-config`, and no UV_ variable
of the caller), so that the same call means the same on every machine.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from envbuilder.errors import ProgramError
from envbuilder.files import disk_full
from envbuilder.process import Completed, clean_environment, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

# uv's own variables say where things come from and how they are linked; ours are given as options.
_FOREIGN = ("UV_", "PIP_")


@lru_cache
def uv_program() -> str:
    """Return the path of the uv that was installed with envbuilder. Raises ProgramError when it is gone."""
    import uv  # noqa: PLC0415 - a package that only knows where its program lies

    try:
        return str(uv.find_uv_bin())
    except FileNotFoundError as error:
        raise ProgramError(
            "uv is not installed beside envbuilder", why=str(error), next="Remove .venv and run bin/envbuilder again."
        ) from error


def run_uv(
    arguments: Sequence[str | Path],
    *,
    cache: Path,
    what: str,
    variables: Mapping[str, str] | None = None,
    log: Path | None = None,
    capture: bool = False,
    on_line: Callable[[str], None] | None = None,
    timeout_s: float = 1800,
) -> Completed:
    """Run uv with its cache in `cache`. Raises ProgramError, whose message holds uv's own; StorageError when the disk is full."""
    environment = {name: value for name, value in clean_environment().items() if not name.startswith(_FOREIGN)}
    environment |= {"UV_CACHE_DIR": str(cache), "UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never", **(variables or {})}
    argv = [uv_program(), *arguments, "--no-config"]
    try:
        return run(argv, env=environment, log=log, capture=capture, on_line=on_line, timeout_s=timeout_s, what=what)
    except ProgramError as error:
        if "os error 28" in error.why:  # ENOSPC, as Rust spells it
            raise disk_full(cache) from error
        raise
