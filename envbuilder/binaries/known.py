"""Faults that are real and hurt nobody: files in popular wheels that do not load on a base system, and are not missed."""

from __future__ import annotations

from envbuilder.binaries.verdicts import Verdict
from envbuilder.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path


@value
class ExpectedFault:
    """A fault that is known and accepted: which files (a glob, relative to site-packages), which verdict, and why."""

    path: str
    verdict: Verdict
    reason: str


# An environment that envbuilder made says in this file, at its top, which faults its target accepts.
MARKER = ".envbuilder.json"


def accepted_by(site_packages: Path) -> tuple[ExpectedFault, ...]:
    """Return the faults that an environment's own target accepts; none for an environment that is not ours."""
    environment = next((folder for folder in (site_packages, *site_packages.parents[:3]) if (folder / MARKER).is_file()), site_packages)
    try:
        content = (environment / MARKER).read_bytes()
        import json  # noqa: PLC0415 - for environments that have the file

        rules = json.loads(content)["expected-abi"]
        return tuple(ExpectedFault(path=rule["path"], verdict=Verdict(rule["verdict"]), reason=rule["reason"]) for rule in rules)
    except (OSError, ValueError, KeyError, TypeError):
        return ()


EVERYWHERE = (
    ExpectedFault(
        path="numba/np/ufunc/[ot][mb][pb]pool.*.so",
        verdict=Verdict.MISSING_LIBRARY,
        reason="one of numba's three threading layers; it takes its own where OpenMP's or TBB's library is absent",
    ),
    ExpectedFault(
        path="cuda/tile/_cext.*.so",
        verdict=Verdict.MISSING_LIBRARY,
        reason="linked against a shared libpython, which Debian's interpreter is not; only users of cuda.tile import it",
    ),
    ExpectedFault(
        path="torch_c_dlpack_ext/libtorch_c_dlpack_addon_torch2[4-9]-*.so",
        verdict=Verdict.UNDEFINED_SYMBOLS,
        reason="one build for each torch from 2.4 to 2.9; core.py loads the one that is named after the torch it finds",
    ),
    ExpectedFault(
        path="torchcodec/libtorchcodec_*.so",
        verdict=Verdict.MISSING_LIBRARY,
        reason="one build for each FFmpeg from 4 to 9, taken from the system; without FFmpeg no video is decoded",
    ),
    ExpectedFault(
        path="cuda/core/cu1[0-9]/_tensor_bridge.*.so",
        verdict=Verdict.UNDEFINED_SYMBOLS,
        reason="takes torch's symbols from the global scope, where vLLM does not put them; only users of cuda.core with tensors load it",
    ),
)
