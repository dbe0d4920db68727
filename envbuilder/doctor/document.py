"""An examination as the JSON document `envbuilder/doctor/1`."""

from __future__ import annotations

from envbuilder.doctor.pages import commands_for, page
from envbuilder.facts import redact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from envbuilder.doctor.model import Examination, Finding

SCHEMA = "envbuilder/doctor/1"


def document(result: Examination) -> dict[str, Any]:
    """Return the whole result, redacted. The order of findings is the order of reading."""
    return {
        "schema": SCHEMA,
        "target": result.target,
        "host": redact.text(result.host),
        "environment": {"path": redact.text(result.environment), "chosen_by": result.chosen_by} if result.environment else None,
        "findings": [_finding(finding, result.environment) for finding in result.findings],
    }


def _finding(finding: Finding, environment: str) -> dict[str, Any]:
    entry, verdict = page(finding.check.id), finding.verdict
    commands = commands_for(entry, verdict.commands, environment)
    return {
        "id": finding.check.id,
        "name": finding.check.name,
        "status": finding.status.value,
        "severity": finding.check.severity.value,
        "title": entry.title,
        "explained_by": finding.explained_by or None,
        "evidence": [{"source": redact.text(item.source), "value": redact.text(item.value)} for item in verdict.evidence],
        "expected": redact.text(verdict.expected),
        "note": redact.text(verdict.note),
        "why": entry.why,
        "fix": {"text": entry.fix, "commands": [redact.text(command) for command in commands]},
        "refs": list(entry.refs),
    }
