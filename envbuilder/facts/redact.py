"""Taking out what names a person, a machine or a secret, and what a terminal obeys, before anything is saved or printed."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

# What stands for the taken part is chosen so that the text stays readable.
_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"\b(?:hf_[A-Za-z0-9]{8,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{20,}|sk-[A-Za-z0-9_-]{16,}|nvapi-[\w-]{16,})"),
        "<token>",
    ),
    (re.compile(r"(?i)\b(bearer)\s+(?!<)\S{6,}"), r"\1 <secret>"),
    (re.compile(r"(?i)(?<![a-z])(authorization|token|password|passwd|secret|api[_-]?key)([=: ]+)(?!<|bearer\b)\S{6,}"), r"\1\2<secret>"),
    (re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"), "<credentials>"),
    (re.compile(r"\b(?:GPU|MIG)-[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"), "<gpu-uuid>"),
    (re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"), "<uuid>"),
    (re.compile(r"\b(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}\b"), "<mac>"),
    (re.compile(r"(?<![\w.])(/(?:home|Users|media|run/user|var/home)/)[^/\s'\":,]+"), r"\1<user>"),
    (re.compile(r"(?i)(?<![a-z])(serial(?:[ _-]?(?:number|no))?[\"']?\s*[=:]\s*[\"']?)[\w-]+"), r"\1<serial>"),
    (re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b"), "<mail>"),
)
_LOOPBACK = r"(?:127\.\d+\.\d+\.\d+|0\.0\.0\.0)(?![\d.])"
# Four-part versions (a cuBLAS of 13.1.0.3) look like addresses: only what stands as one is taken.
_ADDRESS = re.compile(
    rf"(?i)(?:(?<=//)|(?<=@)|(?<=\[)|(?<=from )|(?<=host )|(?<=host=)|(?<=addr )|(?<=addr=)|(?<=address )|(?<=to )|(?<=ip=)|(?<=ip ))(?!{_LOOPBACK})"
    r"(?:\d{1,3}\.){3}\d{1,3}(?![\d.])"
    rf"|(?<![\d.=-])(?!{_LOOPBACK})(?:\d{{1,3}}\.){{3}}\d{{1,3}}(?=[:/]\d)"
)
_ADDRESS_6 = re.compile(r"(?<![\w:.])(?:[0-9a-fA-F]{1,4}:){3,7}[0-9a-fA-F]{1,4}(?![\w:.])|\bfe80::[0-9a-fA-F:]+")


def _home() -> str:
    """Return this user's home folder where its path names a person; it is shown as ~, which can be pasted."""
    home = os.environ.get("HOME", "")
    return home if home.startswith(("/home/", "/Users/", "/var/home/")) else ""


def text(value: str) -> str:
    """Return `value` without tokens, credentials, identifiers, addresses, the names in home paths, and control characters."""
    if (home := _home()) and home in value:
        value = re.sub(rf"{re.escape(home)}(?=/|\b)", "~", value)
    for pattern, replacement in _RULES:
        value = pattern.sub(replacement, value)
    if not value.isprintable():  # a terminal obeys control characters, and what is read may hold any
        value = "".join(sign if sign.isprintable() or sign in "\t\n" else " " if sign.isspace() else "?" for sign in value)
    return _ADDRESS_6.sub("<address>", _ADDRESS.sub("<address>", value))


def tree(value: Any) -> Any:  # noqa: ANN401 - any part of a snapshot
    """Return the same data with every string redacted (a dataclass stays one; keys of dicts are names, and stay)."""
    if isinstance(value, str):
        return text(value) if len(value) > 5 else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {name: tree(getattr(value, name)) for name in value.__dataclass_fields__}
        return dataclasses.replace(value, **changed)
    if isinstance(value, tuple):
        return tuple(tree(item) for item in value)
    if isinstance(value, dict):
        return {key: tree(item) for key, item in value.items()}
    return value
