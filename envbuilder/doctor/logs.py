"""Recognising failures in logs of any length, in bounded memory: one piece at a time, long lines cut."""

from __future__ import annotations

from dataclasses import dataclass, field

from envbuilder.doctor.commands import pastable
from envbuilder.doctor.model import Evidence, Examination, Finding, Status, Verdict
from envbuilder.doctor.registry import all_checks
from envbuilder.doctor.signatures import SIGNATURES
from envbuilder.facts import redact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from envbuilder.doctor.signatures import Signature

_PIECE = 1 << 20
_LONGEST_LINE = 4096
_KEPT_LINES = 3
_MOST_NUMBERS = 10_000
_SHOWN_CHARACTERS = 240


@dataclass
class Match:
    """The lines of one id: how often, the first few, and where the first one was."""

    id: str
    root: int
    harmless: bool
    count: int = 0
    first: int = 0
    lines: list[tuple[int, str]] = field(default_factory=list)
    numbers: set[int] = field(default_factory=set)

    def add(self, number: int, line: bytes) -> None:
        if number in self.numbers:  # two signatures of one id may fit the same line
            return
        if len(self.numbers) < _MOST_NUMBERS:
            self.numbers.add(number)
        self.count += 1
        self.first = self.first or number
        if len(self.lines) < _KEPT_LINES:
            text = line.decode(errors="replace").strip()
            printable = "".join(sign if sign.isprintable() else " " for sign in text)
            self.lines.append((number, redact.text(printable)[:_SHOWN_CHARACTERS]))


def match_log(stream: BinaryIO, signatures: Iterable[Signature] = SIGNATURES) -> list[Match]:
    """Return what a log shows, causes before what follows from them, and of equals the earlier first."""
    chosen = tuple(signatures)
    needles = {signature.needle for signature in chosen}
    found: dict[str, Match] = {}
    number = 1
    for piece in _pieces(stream):
        # Most pieces hold none of the texts: they are passed over without splitting them into lines.
        if present := {needle for needle in needles if needle in piece}:
            for signature in chosen:
                if signature.needle in present:
                    _search(piece, signature, number, found)
        number += piece.count(b"\n")
    return sorted(found.values(), key=lambda match: (match.harmless, match.root, match.first))


def _search(piece: bytes, signature: Signature, number: int, found: dict[str, Match]) -> None:
    place = piece.find(signature.needle)
    counted, line_number = 0, number
    while place >= 0:
        start = piece.rfind(b"\n", 0, place) + 1
        end = piece.find(b"\n", place)
        end = len(piece) if end < 0 else end
        line_number += piece.count(b"\n", counted, start)
        counted = start
        line = piece[max(start, place - _LONGEST_LINE // 2) : min(end, place + _LONGEST_LINE // 2)].rstrip(b"\r")
        if signature.pattern.search(line):
            match = found.setdefault(signature.id, Match(id=signature.id, root=signature.root, harmless=signature.harmless))
            match.add(line_number, line)
        place = piece.find(signature.needle, end)


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    """Yield pieces that end with a line. A line longer than a piece is cut where it must be."""
    rest = b""
    while chunk := stream.read(_PIECE):
        data = rest + chunk
        cut = data.rfind(b"\n") + 1
        if cut == 0:
            if len(data) < 2 * _PIECE:
                rest = data
                continue
            cut = len(data) - _LONGEST_LINE  # a text at the seam is seen whole in the next piece
        yield data[:cut]
        rest = data[cut:]
    if rest:
        yield rest


def examine_log(stream: BinaryIO, *, name: str) -> Examination:
    """Return findings for what a log shows: failures, the root first, and notices that only look like failures."""
    matches = match_log(stream)
    faults = [match for match in matches if not match.harmless]
    root = faults[0].id if faults else ""
    findings = [
        _finding(match, name, explained_by=root if not match.harmless and match.root > faults[0].root and match.id != root else "")
        for match in matches
    ]
    return Examination(target="", host=f"the log {name}", findings=tuple(findings))


def _finding(match: Match, name: str, *, explained_by: str) -> Finding:
    evidence = tuple(Evidence(source=f"{name}:{number}", value=line) for number, line in match.lines)
    times = f"{match.count} lines in all." if match.count > len(match.lines) else ""
    if match.harmless:
        times = f"It only looks like a fault. {times}".strip()
    status = Status.INFO if match.harmless else Status.FAIL
    return Finding(check=all_checks()[match.id], verdict=Verdict(status=status, evidence=evidence, note=times), explained_by=explained_by)


def recognised(path: Path) -> list[str]:
    """Return what a log file shows, one line for each root: for whoever just failed and has a log to show for it."""
    from envbuilder.doctor.pages import page  # noqa: PLC0415 - only after a failure

    try:
        with path.open("rb") as stream:
            result = examine_log(stream, name=path.name)
    except OSError:
        return []
    roots = [finding for finding in result.findings if finding.status is Status.FAIL and not finding.explained_by]
    return [
        f"{finding.check.id} {finding.check.name} ({finding.verdict.evidence[0].source}): {page(finding.check.id).fix} `{pastable(f'envbuilder explain {finding.check.id}')}` says more."
        for finding in roots
    ]
