"""Running all checks over one snapshot, and finding out which findings only follow from others."""

from __future__ import annotations

from envbuilder.doctor.checks.common import target_of
from envbuilder.doctor.model import Evidence, Examination, Finding, Severity, Status, Verdict
from envbuilder.doctor.registry import all_checks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from envbuilder.doctor.model import Check
    from envbuilder.facts.model import Snapshot

_STATUS_ORDER = (Status.FAIL, Status.CRASH, Status.WARN, Status.INFO, Status.UNKNOWN, Status.PASS, Status.SKIP)
_SEVERITY_ORDER = tuple(Severity)


def examine(snapshot: Snapshot, *, checks: Iterable[Check] | None = None) -> Examination:
    """Judge a snapshot. The order of the result is the order of reading: roots first, the worst first."""
    chosen = [check for check in (checks if checks is not None else all_checks().values()) if check.judge is not None]
    verdicts = {check.id: (check, run_check(check, snapshot)) for check in chosen}
    choice, found = snapshot.chosen, snapshot.environment
    return Examination(
        target=target_of(snapshot),
        host=describe(snapshot),
        environment=choice.path if choice else found.path if found else "",
        chosen_by=choice.why if choice else "",
        findings=order(verdicts),
    )


def run_check(check: Check, snapshot: Snapshot) -> Verdict:
    """Return a check's verdict. What it lacks makes it unknown; what it stumbles over makes it a crash: both are results."""
    assert check.judge is not None  # noqa: S101 - the caller chose it by that
    for section in check.needs:
        if getattr(snapshot, section) is None:
            return _without(section, snapshot)
    try:
        return check.judge(snapshot)
    except Exception as error:  # noqa: BLE001 - a check that crashes is a result
        seen = Evidence(source=f"check {check.id}", value=f"{type(error).__name__}: {error}")
        return Verdict(
            status=Status.CRASH,
            evidence=(seen,),
            note="This is a fault of envbuilder: please report it with a snapshot (doctor --save FILE).",
        )


def _without(section: str, snapshot: Snapshot) -> Verdict:
    reading = next((reading for reading in snapshot.readers if reading.name == section), None)
    if reading is not None and reading.status != "ok":
        return Verdict(status=Status.UNKNOWN, note=f"the reader {section!r}: {reading.status}, {reading.error}")
    reason = {"environment": "no environment was found", "kernel_log": "the kernel log may not be read by this user"}
    return Verdict(status=Status.SKIP, note=reason.get(section, f"nothing to read for {section!r}"))


def order(verdicts: Mapping[str, tuple[Check, Verdict]]) -> tuple[Finding, ...]:
    """Fold what follows from another finding under it, and sort: by status, by severity, then as registered."""
    faults = {key for key, (_, verdict) in verdicts.items() if verdict.status in {Status.FAIL, Status.WARN}}
    explained = {key: cause for key in faults if (cause := _root_of(key, faults, verdicts))}
    findings = [Finding(check=check, verdict=verdict, explained_by=explained.get(key, "")) for key, (check, verdict) in verdicts.items()]
    places = {key: place for place, key in enumerate(verdicts)}

    def rank(finding: Finding) -> tuple[bool, int, int, int]:
        return (
            bool(finding.explained_by),
            _STATUS_ORDER.index(finding.status),
            _SEVERITY_ORDER.index(finding.check.severity),
            places[finding.check.id],
        )

    return tuple(sorted(findings, key=rank))


def _root_of(id: str, faults: set[str], verdicts: Mapping[str, tuple[Check, Verdict]]) -> str:
    """Return the last cause up the chain of `after`, "" if there is none. A failure is not explained by a mere warning."""
    current, seen = id, {id}
    while True:
        failed = verdicts[current][1].status is Status.FAIL
        causes = [
            cause
            for cause in verdicts[current][0].after
            if cause in faults and cause not in seen and (not failed or verdicts[cause][1].status is Status.FAIL)
        ]
        if not causes:
            return current if current != id else ""
        current = causes[0]
        seen.add(current)


def describe(snapshot: Snapshot) -> str:
    """Return one line that says which machine this is, without naming it."""
    parts = [snapshot.product] if snapshot.product else []
    if snapshot.nvml and snapshot.nvml.gpus:
        first = snapshot.nvml.gpus[0]
        count = len(snapshot.nvml.gpus)
        parts.append(f"{count} x {first.name}" if count > 1 else first.name)
    elif snapshot.machine == "cpu":
        parts.append("no NVIDIA GPU")
    if snapshot.dgx and snapshot.dgx.running:
        parts.append(f"DGX OS {snapshot.dgx.running}")
    if snapshot.host:
        parts += [part for part in (snapshot.host.os_name, snapshot.host.arch, f"kernel {snapshot.host.kernel}") if part]
        if snapshot.host.wsl:
            parts.append("WSL")
        elif snapshot.host.container:
            parts.append(f"in a container ({snapshot.host.container})")
    if snapshot.driver and snapshot.driver.loaded:
        parts.append(f"driver {snapshot.driver.loaded}")
    return ", ".join(dict.fromkeys(parts))
