"""What is read in a child process: it works on another core, and what crashes there costs a finding, not the doctor."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from envbuilder.facts.model import Extension
from envbuilder.process import clean_environment, run

_LIMIT_S = 20.0
_CODE = "import sys; sys.path[:0] = sys.argv[2:]; from envbuilder.facts.extensions import main; main(sys.argv[1])"


def extensions(environment: Path) -> tuple[Extension, ...]:
    """Read an environment's extensions (facts/extensions.py): 90,000 symbols to unpack, while the other readers work."""
    # -I and -S: neither this process's variables nor its site decide, and the start takes half the time.
    paths = [str(Path(__file__).parents[2]), *(path for path in sys.path if path)]
    done = run([sys.executable, "-I", "-S", "-c", _CODE, environment, *paths], env=clean_environment(), timeout_s=_LIMIT_S, capture=True)
    return tuple(_extension(entry) for entry in json.loads(done.stdout))


def _extension(entry: dict[str, Any]) -> Extension:
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
    return Extension(**fields)
