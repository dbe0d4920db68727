"""A report on GPU code as text of 80 columns."""

from __future__ import annotations

import textwrap

from envbuilder.binaries.gpu_code import Way

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuilder.binaries.gpu_code import GpuCodeFile, GpuCodeReport

_WIDTH = 80
_WORDS = {
    Way.NATIVE: "made for this GPU",
    Way.FAMILY: "made for its family",
    Way.JIT: "compiled from PTX at first use",
    Way.NONE: "cannot run on it",
}


def render(report: GpuCodeReport) -> str:
    return "\n".join(_lines(report))


def _lines(report: GpuCodeReport) -> Iterator[str]:
    yield f"GPU code, for {report.arch}"
    with_code = [file for file in report.files if file.verdict is not Way.HOST_ONLY]
    for file in with_code:
        yield from _file(file)
    for path, why in report.unreadable:
        yield from textwrap.wrap(f"{path}: unreadable: {why}", _WIDTH, subsequent_indent="  ")
    for package in report.lacking:
        yield from textwrap.wrap(f"✗ {package}: none of its GPU code runs on {report.arch}", _WIDTH, subsequent_indent="  ")
    host_only = len(report.files) - len(with_code)
    bad = sum(file.verdict is Way.NONE for file in with_code) + len(report.unreadable)
    yield f"{'✓' if report.ok else '✗'} {len(with_code) - bad} of {len(with_code) + len(report.unreadable)} files with GPU code can run some of it; {host_only} without"


def _file(file: GpuCodeFile) -> Iterator[str]:
    yield f"{file.path}: {file.verdict}"
    parts = [f"{count} {_WORDS[Way(way)]}" for way, count in file.units.items()]
    outside = f" ({file.outside} of them outside .nv_fatbin)" if file.outside else ""
    yield from textwrap.wrap(
        f"of {sum(file.units.values())} units{outside}: {', '.join(parts)}", _WIDTH, initial_indent="  ", subsequent_indent="    "
    )
    pieces = [f"{count} {name}" for name, count in (*file.cubins.items(), *file.ptx.items())]
    yield from textwrap.wrap(", ".join(pieces), _WIDTH, initial_indent="    ", subsequent_indent="    ")
