"""The page a person reads: 80 columns, with colour or without, the worst first, the fix beside the fault."""

from __future__ import annotations

import os
import re
import textwrap
from collections import Counter

from envbuilder.doctor.commands import pastable
from envbuilder.doctor.model import Severity, Status
from envbuilder.doctor.pages import commands_for, page
from envbuilder.facts import redact
from envbuilder.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from typing import TextIO

    from envbuilder.doctor.model import Check, Examination, Finding

WIDTH = 80
_MARKS = {
    Status.FAIL: ("✗", "31;1"),
    Status.CRASH: ("✗", "35;1"),
    Status.WARN: ("!", "33;1"),
    Status.INFO: ("i", "36"),
    Status.UNKNOWN: ("?", "36"),
    Status.PASS: ("✓", "32"),
    Status.SKIP: ("-", "2"),
}
_ASCII = {"✗": "x", "✓": "+", "…": "...", "·": "-"}
_SAYS = {
    Severity.BLOCKS: "stops building or serving",
    Severity.WRONG_RESULT: "can give wrong results",
    Severity.SLOW: "makes it slow",
    Severity.INFO: "good to know",
}
# Said in words too: not everyone sees colours, and a mark alone is easily read over.
_WORDS = {Status.FAIL: "FAILED ", Status.CRASH: "CRASHED ", Status.WARN: "WARNING ", Status.UNKNOWN: "UNKNOWN "}
_MOST_EVIDENCE = 4
_MOST_COMMANDS = 4


@value
class Style:
    """How to print: colour, and whether the terminal can show more than ASCII."""

    colour: bool = False
    plain: bool = False

    @staticmethod
    def of(stream: TextIO) -> Style:
        """See https://no-color.org: a set NO_COLOR wins, FORCE_COLOR comes next, else the terminal decides."""
        terminal = stream.isatty() and os.environ.get("TERM", "") != "dumb"
        colour = not os.environ.get("NO_COLOR") and (terminal or bool(os.environ.get("FORCE_COLOR")))
        encoding = (getattr(stream, "encoding", "") or "").lower().replace("-", "")
        return Style(colour=colour, plain=encoding not in {"utf8", "utf16", ""})

    def paint(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.colour else text

    def final(self, text: str) -> str:
        if not self.plain:
            return text
        for sign, replacement in _ASCII.items():
            text = text.replace(sign, replacement)
        return text.encode("ascii", "replace").decode()


def examination(
    result: Examination, style: Style, *, everything: bool = False, seconds: float | None = None, mendable: Collection[str] = ()
) -> str:
    """Return the page of an examination; `everything` shows what passed and what was skipped, too.

    `mendable` are the ids that `--fix` can do something for.
    """
    lines = [*_subject(result), ""] if result.target else []
    followers = _followers(result.findings)
    shown = [finding for finding in result.findings if not finding.explained_by and (finding.is_fault or finding.status is Status.UNKNOWN)]
    for finding in shown:
        lines += [*_finding(finding, style, followers.get(finding.check.id, []), result.environment), ""]
    lines += _notes(result.findings, style, short=bool(shown) and not everything)
    if everything:
        lines += _rest(result.findings, style)
    lines += [*_summary(result, style, seconds)]
    if able := [finding.check.id for finding in result.findings if finding.is_fault and finding.check.id in mendable]:
        lines += _wrap(f"Can be mended, and taken back: {redact.text(pastable('envbuilder doctor --fix'))} ({', '.join(able)})", 0, 2)
    return style.final("\n".join(lines))


def _subject(result: Examination) -> Iterator[str]:
    """Say what was judged: a page that names no environment would call a broken one well."""
    chosen = f"{redact.text(result.environment)}{f' ({result.chosen_by})' if result.chosen_by else ''}"
    rows = {
        "Machine": redact.text(result.host),
        "Target": redact.text(result.target),
        "Environment": chosen if result.environment else "none found: name one with --env DIR",
    }
    for label, text in rows.items():
        yield from _wrap(f"{f'{label}:':<12} {text}", 0, 13)


def _followers(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.explained_by:
            found.setdefault(finding.explained_by, []).append(finding)
    return found


def _finding(finding: Finding, style: Style, followers: Sequence[Finding], environment: str) -> Iterator[str]:
    mark, code = _MARKS[finding.status]
    entry, verdict = page(finding.check.id), finding.verdict
    head = f"{mark} {_WORDS[finding.status]}{finding.check.id} {finding.check.name}"
    says = f"  ({_SAYS[finding.check.severity]})"
    if len(head) + len(says) > WIDTH:
        yield style.paint(head, code)
        yield style.paint(says, "2")
    else:
        yield style.paint(head, code) + style.paint(says, "2")
    yield from _wrap(f"Not true here: {entry.title}" if finding.is_fault else entry.title, 2)
    for evidence in verdict.evidence[:_MOST_EVIDENCE]:
        text = redact.text(f"{evidence.source}: {evidence.value}" if evidence.source else evidence.value)
        yield from _labelled("seen", text, style)
    if len(verdict.evidence) > _MOST_EVIDENCE:
        yield from _labelled("", f"and {len(verdict.evidence) - _MOST_EVIDENCE} more", style)
    if verdict.expected:
        yield from _labelled("wanted", redact.text(verdict.expected), style)
    if verdict.note:
        yield from _labelled("note", redact.text(verdict.note), style)
    if finding.status is Status.UNKNOWN:
        return
    yield from _labelled("why", _brief(entry.why), style)
    yield from _labelled("fix", entry.fix, style)
    for command in commands_for(entry, verdict.commands, environment)[:_MOST_COMMANDS]:
        # Commands are never broken: they are there to be copied.
        yield "          " + style.paint(redact.text(command), "1")
    if followers:
        yield from _labelled("causes", ", ".join(f"{one.check.id} {one.check.name}" for one in followers), style)


def _brief(why: str) -> str:
    """Return the first sentences of a reason, as many as fit four lines: `explain` says the rest."""
    kept = ""
    for sentence in re.split(r"(?<=[.!?]) (?=[A-Z`])", why):
        if kept and len(kept) + len(sentence) > 4 * (WIDTH - 10):
            break
        kept = f"{kept} {sentence}".lstrip()
    return kept


def _labelled(label: str, text: str, style: Style) -> Iterator[str]:
    rows = textwrap.wrap(text, WIDTH - 10, break_long_words=True, break_on_hyphens=False) or [""]
    for number, row in enumerate(rows):
        yield f"  {style.paint(f'{label:<8}', '2') if number == 0 else ' ' * 8}{row}"


def _wrap(text: str, indent: int, hanging: int | None = None) -> list[str]:
    following = " " * (hanging if hanging is not None else indent)
    return textwrap.wrap(text, WIDTH, initial_indent=" " * indent, subsequent_indent=following, break_on_hyphens=False)


def _notes(findings: Sequence[Finding], style: Style, *, short: bool) -> Iterator[str]:
    notes = [finding for finding in findings if finding.status is Status.INFO and not finding.explained_by]
    if not notes:
        return
    if short:  # who has a fault to mend reads nothing else
        names = ", ".join(f"{one.check.id} {one.check.name}" for one in notes)
        yield from _wrap(f"Only good to know (--all shows them): {names}", 0, 2)
        yield ""
        return
    yield style.paint("Good to know", "1")
    for finding in notes:
        mark, code = _MARKS[Status.INFO]
        evidence = finding.verdict.evidence[0] if finding.verdict.evidence else None
        said = f"{evidence.source}: {evidence.value.rstrip('.')}. " if evidence and evidence.source else ""
        note = finding.verdict.note or page(finding.check.id).title
        rows = textwrap.wrap(redact.text(f"{said}{note}"), WIDTH - 4, break_on_hyphens=False)
        yield f"{style.paint(mark, code)} {finding.check.id} {style.paint(finding.check.name, '2')}"
        yield from (f"    {row}" for row in rows[:3])
    yield ""


def _rest(findings: Sequence[Finding], style: Style) -> Iterator[str]:
    for status, title in ((Status.PASS, "Passed"), (Status.SKIP, "Not for this machine or environment")):
        chosen = [finding for finding in findings if finding.status is status]
        if chosen:
            yield style.paint(title, "1")
        for finding in chosen:
            mark, code = _MARKS[status]
            said = finding.verdict.note or page(finding.check.id).title
            yield f"{style.paint(mark, code)} {finding.check.id:<13} {textwrap.shorten(redact.text(said), WIDTH - 18, placeholder=' …')}"
        if chosen:
            yield ""


def _summary(result: Examination, style: Style, seconds: float | None) -> Iterator[str]:
    count = Counter(finding.status for finding in result.findings if not finding.explained_by)
    folded = sum(bool(finding.explained_by) for finding in result.findings)
    words = [f"{count[Status.FAIL]} failed" if count[Status.FAIL] else "", f"{count[Status.WARN]} warned" if count[Status.WARN] else ""]
    words += [
        f"{folded} caused by these" if folded else "",
        f"{count[Status.CRASH]} checks crashed" if count[Status.CRASH] else "",
    ]
    words += [
        f"{count[Status.UNKNOWN]} not to be told" if count[Status.UNKNOWN] else "",
        f"{count[Status.PASS]} passed" if result.target else "",
    ]
    took = f"in {seconds:.2f} s" if seconds is not None else ""
    bad = count[Status.FAIL] or count[Status.WARN] or count[Status.CRASH]
    log, whole = not result.target, bool(result.environment)
    good = "The log shows no failure that is known here." if log else "Nothing is wrong." if whole else "Nothing is wrong with the machine."
    verdict = "Something is wrong." if bad else good
    said = ", ".join(word for word in (*words, took) if word)
    rows = _wrap(f"{verdict} {said[:1].upper()}{said[1:]}." if said else verdict, 0, 2)
    yield style.paint(verdict, "31;1" if bad else "32;1") + rows[0].removeprefix(verdict)
    yield from rows[1:]
    if bad:
        first = next(finding for finding in result.findings if finding.is_fault and not finding.explained_by)
        yield f"To read more: {redact.text(pastable(f'envbuilder explain {first.check.id}'))}"


def explanation(check: Check, style: Style) -> str:
    """Return the whole page of an id."""
    entry = page(check.id)
    lines = [
        style.paint(f"{check.id} {check.name}", "1") + style.paint(f"  ({_SAYS[check.severity]})", "2"),
        *_wrap(entry.title + ".", 0),
        "",
    ]
    lines += [style.paint("Why it matters", "1"), *_wrap(entry.why, 2), ""]
    for paragraph in entry.more.split("\n\n") if entry.more else ():
        lines += [*_wrap(paragraph, 2), ""]
    lines += [style.paint("What to do", "1"), *_wrap(entry.fix, 2)]
    lines += ["", *(f"    {command}" for command in entry.commands)] if entry.commands else []
    if entry.refs:
        lines += ["", style.paint("Seen in", "1"), *(f"  {ref}" for ref in entry.refs)]
    if check.judge is None:
        lines += ["", *_wrap(f"It leaves no trace on the disk: `{pastable('envbuilder doctor --log FILE')}` recognises it in a log.", 0)]
    return style.final("\n".join(lines))
