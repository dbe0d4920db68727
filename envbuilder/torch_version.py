"""torch/version.py: the one file that tells which build a torch is, installed or in its wheel."""

from __future__ import annotations

from envbuilder.values import value


@value
class TorchBuild:
    """What torch says of itself: the version with its local part, and the CUDA or HIP it was built for (None: without)."""

    version: str
    cuda: str | None
    hip: str | None = None


def parse_torch_version(text: str) -> TorchBuild | None:
    """Return the build that the text of torch/version.py names, None if it names none. The text is not run."""
    found = {}
    for line in text.splitlines():  # cuda: Optional[str] = '13.0'
        target, _, value = line.partition("=")
        name = target.partition(":")[0].rstrip()
        parts = value.replace('"', "'").split("'")
        if name in {"__version__", "cuda", "hip"} and len(parts) > 2 and parts[1]:
            found[name] = parts[1]
    if "__version__" not in found:
        return None
    return TorchBuild(version=found["__version__"], cuda=found.get("cuda"), hip=found.get("hip"))
