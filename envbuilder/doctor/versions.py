"""Versions, specifiers and markers (PEP 440, PEP 508) as `packaging` judges them; the plain ones without it.

An environment has hundreds of requirements, and nearly all compare numbers with numbers ("2.13.0" with ">=2.9,<3") or
a name with a name. `packaging` brings logging, subprocess, platform and inspect along: importing it takes longer than
judging all of them here. Where numbers do not decide (two pre-releases of one number, epochs, parentheses, other
names) it is asked; a test holds that both judge alike.
"""

from __future__ import annotations

import functools
import operator as compare
import re

from envbuilder.facts.site_packages import normalized
from envbuilder.values import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from packaging.specifiers import SpecifierSet

Release = tuple[int, ...]
_NUMBERS = r"([0-9]{1,9}(?:\.[0-9]{1,9})*)"
_BEFORE_OR_AFTER = r"((?:\.?(?:a|b|rc)[0-9]{1,9})?)((?:\.?post[0-9]{1,9})?)((?:\.?dev[0-9]{1,9})?)"
_LABEL = r"((?:\+[a-z0-9]+(?:\.[a-z0-9]+)*)?)"
_CLAUSE = re.compile(rf"\s*(==|!=|<=|>=|<|>|~=)\s*{_NUMBERS}(?:(\.\*)|{_BEFORE_OR_AFTER}{_LABEL})\s*")
_REQUIREMENT = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[[^\]]*\])?\s*\(?([^;()]*)\)?\s*(?:;(.*))?")
_NUMBERED = frozenset({"python_version", "python_full_version"})
_NAMED = frozenset(
    {"platform_machine", "sys_platform", "platform_system", "os_name", "implementation_name", "platform_python_implementation"}
)
_OPERATORS: Mapping[str, Callable[[Release, Release], bool]] = {
    "==": compare.eq,
    "!=": compare.ne,
    "<=": compare.le,
    ">=": compare.ge,
    "<": compare.lt,
    ">": compare.gt,
}


class Required(NamedTuple):
    """A requirement: the canonical name of what is required, the specifier as it is written, and the marker ("" for none)."""

    name: str
    specifier: str
    marker: str


@functools.cache
def parse_requirement(line: str) -> Required | None:
    """Split a line of Requires-Dist; None if it is no requirement. What it says of versions may still be nonsense."""
    match = _REQUIREMENT.fullmatch(line)
    return Required(normalized(match[1]), match[2].strip(), (match[3] or "").strip()) if match else None


@functools.cache
def within(version: str, specifier: str) -> bool:
    """Whether a version fits a specifier, pre-releases included; a version that is none does not.

    Raises ValueError (InvalidSpecifier).
    """
    plain = _plainly_within(version, specifier)
    if plain is not None:
        return plain
    from packaging.version import InvalidVersion, Version  # noqa: PLC0415 - see the module's docstring

    try:
        found = Version(version)
    except InvalidVersion:
        return False
    return _specifiers(specifier).contains(found, prereleases=True)


@functools.cache
def _specifiers(text: str) -> SpecifierSet:
    from packaging.specifiers import SpecifierSet  # noqa: PLC0415

    return SpecifierSet(text)


def _plainly_within(version: str, specifier: str) -> bool | None:
    """Compare numbers; None where they do not decide. A local label (+cpu) counts for nothing where the specifier has none."""
    found = _CLAUSE.fullmatch(f"=={version}")
    if found is None or found[3]:
        return None
    if specifier == f"=={version}":
        return True
    clauses = [_CLAUSE.fullmatch(part) for part in specifier.split(",") if part.strip()]
    answers = [clause and _compared(found, clause) for clause in clauses]
    return None if None in answers else all(answers)


def _compared(found: re.Match[str], clause: re.Match[str]) -> bool | None:
    operator, wildcard = clause[1], clause[3]
    one, other = _numbers(found[2]), _numbers(clause[2])
    digits = len(other)
    one, other = one + (0,) * (digits - len(one)), other + (0,) * (len(one) - digits)
    final = not any(found.group(4, 5, 6))
    if operator == "~=" or wildcard:
        if not final or any(clause.group(4, 5, 6, 7)):
            return None
        if operator == "~=":
            return one >= other and one[: digits - 1] == other[: digits - 1] if digits > 1 and not wildcard else None
        return _OPERATORS[operator](one[:digits], other[:digits]) if operator in {"==", "!="} else None
    if clause[7] and operator not in {"==", "!="}:
        return None
    if one == other:
        if not final or clause[5] or clause[7]:
            return None
        if clause[4] or clause[6]:  # a pre-release comes before the release of its number
            other = (*other[:-1], other[-1] - 1)
    return _OPERATORS[operator](one, other)


def _numbers(text: str) -> Release:
    return tuple(map(int, text.split(".")))


def holds(marker: str, values: Mapping[str, str]) -> bool:
    """Whether a marker holds where its variables have these values; one that cannot be read does not."""
    plain = _plainly_holds(marker, values)
    if plain is not None:
        return plain
    from packaging.markers import InvalidMarker, Marker, UndefinedEnvironmentName  # noqa: PLC0415 - see the module's docstring

    try:
        return Marker(marker).evaluate(dict(values))
    except (InvalidMarker, UndefinedEnvironmentName, ValueError):
        return False


def _plainly_holds(marker: str, values: Mapping[str, str]) -> bool | None:
    """Evaluate comparisons joined by `and` and `or`, the former first; None where there is more than that."""
    answers = [[_comparison(part, values) for part in re.split(r"\sand\s", either)] for either in re.split(r"\sor\s", marker)]
    if any(None in together for together in answers):
        return None
    return any(all(together) for together in answers)


def _comparison(text: str, values: Mapping[str, str]) -> bool | None:
    quote = '"' if '"' in text else "'"
    compared, _, rest = text.partition(quote)
    stated, closed, nothing = rest.partition(quote)
    name = compared.rstrip("=!<> \t")
    operator, name = compared[len(name) :].strip(), name.strip()
    if not closed or nothing.strip() or operator not in _OPERATORS:
        return None
    if name in _NUMBERED:
        return _plainly_within(values[name], f"{operator}{stated}")
    if name in _NAMED and operator in {"==", "!="} and _is_name(stated) and _is_name(values[name]):
        return (values[name] == stated) is (operator == "==")
    return None


def _is_name(text: str) -> bool:
    """Whether a text is a word to packaging, too, and no version (v1 is one)."""
    return text.isascii() and text.isidentifier() and text[0] != "_" and not (text[0] == "v" and text[1:2].isdigit())
