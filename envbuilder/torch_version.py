"""torch/version.py: the one file that tells which build a torch is, installed or in its wheel."""

from __future__ import annotations

import re

from envbuilder.values import value

_ASSIGNED = re.compile(r"^(__version__|cuda|hip)\b[^=\n]*=[ \t]*['\"]([^'\"\n]+)['\"]", re.MULTILINE)


@value
class TorchBuild:
    """What torch says of itself: the version with its local part, and the CUDA or HIP it was built for (None: without)."""

    version: str
    cuda: str | None
    hip: str | None = None


def parse_torch_version(text: str) -> TorchBuild | None:
    """Return the build that the text of torch/version.py names, None if it names none. The text is not run."""
    found = dict(_ASSIGNED.findall(text))
    if "__version__" not in found:
        return None
    return TorchBuild(version=found["__version__"], cuda=found.get("cuda"), hip=found.get("hip"))
