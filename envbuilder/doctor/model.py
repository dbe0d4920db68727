"""What a check is and what it answers. A check is a pure function of a snapshot; everything it needs to say is data."""

from __future__ import annotations

import enum

from envbuilder.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuilder.facts.model import Snapshot


class Status(enum.StrEnum):
    """How a check came out. `unknown`: the evidence could not be had. `skip`: it does not apply here."""

    FAIL = "fail"
    WARN = "warn"
    INFO = "info"
    PASS = "pass"  # noqa: S105 - a status
    SKIP = "skip"
    UNKNOWN = "unknown"
    CRASH = "crash"


class Severity(enum.StrEnum):
    """What a fault does to its owner, the worst first."""

    BLOCKS = "blocks"
    WRONG_RESULT = "wrong-result"
    SLOW = "slow"
    INFO = "info"


@value
class Evidence:
    """Where it was seen (a file, a variable, NVML), and the raw value."""

    source: str
    value: str


@value
class Verdict:
    """A check's answer. `commands` replace the page's when they depend on what was found."""

    status: Status
    evidence: tuple[Evidence, ...] = ()
    expected: str = ""
    note: str = ""
    commands: tuple[str, ...] | None = None


@value
class Check:
    """A check: its id never changes and is never reused; `name` is the failure it detects, as the corpus names it.

    `needs` are sections of the snapshot without which the answer is unknown; `after` are checks whose failure
    explains this one's. `judge` is None for what only logs show.
    """

    id: str
    name: str
    severity: Severity
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    judge: Callable[[Snapshot], Verdict] | None = None

    @property
    def family(self) -> str:
        return self.id.split("-")[1]


_FAULTS = frozenset({Status.FAIL, Status.WARN, Status.CRASH})


@value
class Finding:
    """A check and its verdict; `explained_by` is the id of the finding that it follows from, if any."""

    check: Check
    verdict: Verdict
    explained_by: str = ""

    @property
    def status(self) -> Status:
        return self.verdict.status

    @property
    def is_fault(self) -> bool:
        return self.verdict.status in _FAULTS


@value
class Examination:
    """All findings, roots first; `target` is the one the environment was judged for ("" for a log).

    `environment` is the path of the one that was looked at ("" if none), `chosen_by` why it was that one.
    """

    target: str
    host: str
    environment: str = ""
    chosen_by: str = ""
    findings: tuple[Finding, ...] = ()


def _answer(
    status: Status, seen: tuple[str | tuple[str, object], ...], expected: str, note: str, commands: tuple[str, ...] | None
) -> Verdict:
    evidence = tuple(
        Evidence(source=item[0], value=str(item[1])) if isinstance(item, tuple) else Evidence(source="", value=item) for item in seen
    )
    return Verdict(status=status, evidence=evidence, expected=expected, note=note, commands=commands)


def fail(*seen: str | tuple[str, object], expected: str = "", note: str = "", commands: tuple[str, ...] | None = None) -> Verdict:
    return _answer(Status.FAIL, seen, expected, note, commands)


def warn(*seen: str | tuple[str, object], expected: str = "", note: str = "", commands: tuple[str, ...] | None = None) -> Verdict:
    return _answer(Status.WARN, seen, expected, note, commands)


def info(*seen: str | tuple[str, object], expected: str = "", note: str = "", commands: tuple[str, ...] | None = None) -> Verdict:
    return _answer(Status.INFO, seen, expected, note, commands)


def ok(*seen: str | tuple[str, object]) -> Verdict:
    return _answer(Status.PASS, seen, "", "", None)


def skip(reason: str) -> Verdict:
    return Verdict(status=Status.SKIP, note=reason)


def unknown(reason: str) -> Verdict:
    return Verdict(status=Status.UNKNOWN, note=reason)
