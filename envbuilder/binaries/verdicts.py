"""The result of a symbol check, as frozen data that goes to JSON and back (schema envbuilder/abi/1)."""

from __future__ import annotations

from enum import StrEnum

from envbuilder.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

SCHEMA = "envbuilder/abi/1"


class Verdict(StrEnum):
    """What happens when an extension is loaded."""

    OK = "ok"
    UNDEFINED_SYMBOLS = "undefined-symbols"
    MISSING_LIBRARY = "missing-library"
    WRONG_MACHINE = "wrong-machine"
    INCOMPLETE_BUILD = "incomplete-build"
    NOT_ELF = "not-elf"


class Kind(StrEnum):
    """Why a symbol or a library is missing, the root cause of several before its consequences."""

    WRONG_MACHINE = "wrong-machine"
    NO_TORCH = "no-torch"
    CPU_ONLY_TORCH = "cpu-only-torch"
    CUDA_MAJOR = "cuda-major"
    OLD_CXX11_ABI = "old-cxx11-abi"
    TORCH_VERSION = "torch-version"
    NOT_LINKED = "not-linked"
    INCOMPLETE_BUILD = "incomplete-build"
    SYSTEM_TOO_OLD = "system-too-old"
    CUDA_LIBRARY = "cuda-library"
    OTHER_LIBRARY = "other-library"
    MALFORMED = "malformed"


@value
class TorchInfo:
    """A torch build, from its torch/version.py: the wheel's file name does not tell the build. `source`: where it is."""

    version: str | None
    cuda: str | None
    source: str


@value
class MissingSymbol:
    """A symbol nobody defines; `via` is the library that needs it, where that is not the extension itself."""

    symbol: str
    demangled: str
    kind: Kind
    via: str | None = None


@value
class NeededLibrary:
    """A needed soname; `found`: a path in the environment, "system", "driver", or None. `via` as in MissingSymbol."""

    soname: str
    found: str | None
    via: str | None = None


@value
class ExtensionReport:
    """The verdict on one extension module. `expected` is the target's reason why a fault is none."""

    path: str
    machine: str | None
    verdict: Verdict
    missing: tuple[MissingSymbol, ...] = ()
    needed: tuple[NeededLibrary, ...] = ()
    detail: str = ""
    expected: str | None = None

    @property
    def fails(self) -> bool:
        return self.verdict is not Verdict.OK and self.expected is None


@value
class Skipped:
    """A file that looks like an extension and is not judged, with the reason."""

    path: str
    reason: str


@value
class Cause:
    """One reason behind the faults of some extensions. The first of a report is the root cause."""

    kind: Kind
    text: str
    extensions: tuple[str, ...]


@value
class AbiReport:
    """All extensions of what was asked about, against one torch."""

    torch: TorchInfo | None
    machine: str | None
    extensions: tuple[ExtensionReport, ...]
    causes: tuple[Cause, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @property
    def ok(self) -> bool:
        return not any(extension.fails for extension in self.extensions)

    def as_json(self) -> dict[str, Any]:
        from dataclasses import asdict  # noqa: PLC0415 - ten milliseconds, for who prints a document only

        return {"schema": SCHEMA, "ok": self.ok, **asdict(self)}

    @staticmethod
    def from_json(document: dict[str, Any]) -> AbiReport:
        """Read what as_json wrote. Raises KeyError, ValueError or TypeError on anything else."""
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema {document['schema']!r} is not {SCHEMA!r}")
        return AbiReport(
            torch=TorchInfo(**document["torch"]) if document["torch"] else None,
            machine=document["machine"],
            extensions=tuple(map(_extension, document["extensions"])),
            causes=tuple(Cause(kind=Kind(c["kind"]), text=c["text"], extensions=tuple(c["extensions"])) for c in document["causes"]),
            skipped=tuple(Skipped(**s) for s in document["skipped"]),
        )


def _extension(entry: dict[str, Any]) -> ExtensionReport:
    return ExtensionReport(
        path=entry["path"],
        machine=entry["machine"],
        verdict=Verdict(entry["verdict"]),
        missing=tuple(MissingSymbol(**{**m, "kind": Kind(m["kind"])}) for m in entry["missing"]),
        needed=tuple(NeededLibrary(**n) for n in entry["needed"]),
        detail=entry["detail"],
        expected=entry["expected"],
    )


def merged(reports: Sequence[AbiReport]) -> AbiReport:
    """Return one report over several paths; the torch is named where it is the same for all."""
    torches = {report.torch for report in reports}
    machines = {report.machine for report in reports}
    return AbiReport(
        torch=torches.pop() if len(torches) == 1 else None,
        machine=machines.pop() if len(machines) == 1 else None,
        extensions=tuple(extension for report in reports for extension in report.extensions),
        causes=tuple(sorted((cause for report in reports for cause in report.causes), key=lambda cause: list(Kind).index(cause.kind))),
        skipped=tuple(skipped for report in reports for skipped in report.skipped),
    )
