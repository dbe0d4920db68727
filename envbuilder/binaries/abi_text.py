"""A symbol check's report as text of 80 columns: the root cause first, then each extension that fails."""

from __future__ import annotations

import textwrap

from envbuilder.binaries.verdicts import Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuilder.binaries.verdicts import AbiReport, ExtensionReport

_WIDTH = 80
_SYMBOLS_SHOWN = 5
_FILES_SHOWN = 3


def render(report: AbiReport, *, title: str) -> str:
    return "\n".join(_lines(report, title))


def summary(report: AbiReport) -> str:
    """Say in one line what came out, for a step's detail."""
    failing = [extension for extension in report.extensions if extension.fails]
    if not failing:
        expected = sum(extension.expected is not None for extension in report.extensions)
        accepted = f", {expected} accepted fault{'s' * (expected != 1)}" if expected else ""
        return f"{len(report.extensions) - expected} extensions load with {_torch(report)}{accepted}"
    return f"{len(failing)} of {len(report.extensions)} extensions do not load: {report.causes[0].text}"


def _lines(report: AbiReport, title: str) -> Iterator[str]:
    yield f"{title}  ({report.machine or 'unknown machine'}, {_torch(report)})"
    for number, cause in enumerate(report.causes):
        mark = "✗" if number == 0 else "  and"
        yield from textwrap.wrap(f"{mark} {cause.text} ({_count(len(cause.extensions))})", _WIDTH, subsequent_indent="    ")
    for extension in report.extensions:
        if extension.fails:
            yield from _failing(extension)
    for extension in report.extensions:
        if extension.expected is not None:
            yield from textwrap.wrap(
                f"  accepted: {extension.path} ({extension.verdict}): {extension.expected}", _WIDTH, subsequent_indent="    "
            )
    yield from _not_judged(report)
    fine = sum(extension.verdict is Verdict.OK for extension in report.extensions)
    skipped = f"; {len(report.skipped)} files not judged" if report.skipped else ""
    yield f"{'✗' if not report.ok else '✓'} {fine} of {_count(len(report.extensions))} would load{skipped}"


def _failing(extension: ExtensionReport) -> Iterator[str]:
    yield f"  {extension.path}: {extension.verdict}"
    lines = [extension.detail] if extension.detail else []
    lines += [f"{need.soname} is missing{_via(need.via)}" for need in extension.needed if need.found is None]
    lines += [f"{symbol.kind}: {symbol.demangled}{_via(symbol.via)}" for symbol in extension.missing[:_SYMBOLS_SHOWN]]
    if len(extension.missing) > _SYMBOLS_SHOWN:
        lines.append(f"and {len(extension.missing) - _SYMBOLS_SHOWN} more symbols (all with --json)")
    for line in lines:
        yield from textwrap.wrap(line, _WIDTH, initial_indent="    ", subsequent_indent="      ")


def _not_judged(report: AbiReport) -> Iterator[str]:
    """Name some of what was set aside, for each reason. That a wheel serves other Pythons as well is nothing to read about."""
    reasons: dict[str, list[str]] = {}
    for skipped in report.skipped:
        if not skipped.reason.startswith("for another Python"):
            reasons.setdefault(skipped.reason, []).append(skipped.path)
    for reason, paths in reasons.items():
        more = f" and {len(paths) - _FILES_SHOWN} more" if len(paths) > _FILES_SHOWN else ""
        yield from textwrap.wrap(f"  not judged, {reason}: {', '.join(paths[:_FILES_SHOWN])}{more}", _WIDTH, subsequent_indent="    ")


def _via(library: str | None) -> str:
    return f" (for {library})" if library else ""


def _torch(report: AbiReport) -> str:
    if report.torch is None:
        return "no torch"
    return f"torch {report.torch.version or 'of unknown version'}{f', CUDA {report.torch.cuda}' if report.torch.cuda else ', no CUDA'}"


def _count(number: int) -> str:
    return f"{number} extension{'s' * (number != 1)}"
