"""Make the reference kernel visible to one server, and to nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envbuilder import files
from envbuilder.smoke.children import INSIDE

if TYPE_CHECKING:
    from pathlib import Path

_MODULE = "envbuilder_reference_nvfp4"
# A distribution in the sense of the entry points specification: a folder on the path with these two files.
_METADATA = "Metadata-Version: 2.1\nName: envbuilder-reference-nvfp4\nVersion: 1\n"
_ENTRY_POINTS = f"[vllm.general_plugins]\n{_MODULE} = {_MODULE}:register\n"

# The line by which the plugin says in the server's log that it was used.
REPORT = "envbuilder: the reference NVFP4 kernel stands in"


def write(folder: Path) -> Path:
    """Write the plugin's module and its metadata; `folder` belongs on that server's PYTHONPATH."""
    info = folder / f"{_MODULE}-1.dist-info"
    files.write_atomic(folder / f"{_MODULE}.py", (INSIDE / "reference_nvfp4.py").read_bytes())
    files.write_atomic(info / "METADATA", _METADATA)
    files.write_atomic(info / "entry_points.txt", _ENTRY_POINTS)
    return folder
