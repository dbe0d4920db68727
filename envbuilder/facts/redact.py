"""Taking out what names a person, a machine or a secret, and what a terminal obeys, before anything is saved or printed.

What stands for the taken part is chosen so that the text stays readable. Most texts hold nothing that a pattern could
match, and a pattern that no text needs is never compiled: all of them together take longer than reading the machine.

A stand-in depends on nothing but the text around it: the same thing gets the same one wherever it stands, so that
what a saved snapshot compares (a variable with an interface, a path with another) still compares on replay.
"""

from __future__ import annotations

import functools
import os
import re

from envbuilder import reading
from envbuilder.values import NamedTuple, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

_SCHEMES = r"(?:basic|bearer|digest|token)\s+"
_KEYED = r"token|password|passwd|secret|signature|credential|api[_-]?key|access[_-]?key"
_KEYS = ("token", "passw", "secret", "signature", "credential", "key")
_STAND_IN = r"<[a-z-]+>"
_MOST_ROUNDS = 5


class _Rule(NamedTuple):
    """A pattern and what stands for its match; `needles`, in small letters: one of them is in every text that it matches, so many times."""

    needles: tuple[str, ...]
    pattern: str
    replacement: str
    times: int = 1


_RULES = (
    _Rule(
        ("hf_", "gh", "github_pat_", "glpat-", "sk-", "nvapi-", "xox", "akia", "asia", "pypi-", "dckr_pat_", "eyj"),
        r"\b(?:hf_[A-Za-z0-9]{8,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[A-Za-z0-9_-]{16,}|nvapi-[\w-]{16,}"
        r"|xox[a-z]-[\w-]{10,}|A[KS]IA[A-Z0-9]{16}|pypi-[\w-]{16,}|dckr_pat_[\w-]{16,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*)",
        "<token>",
    ),
    # Userinfo of an address, to its last @: a password may hold one, or a slash (then a port's digits are no password).
    _Rule(("@",), r"(?<=://)[^/\s'\"]+@", "<credentials>@"),
    _Rule(("@",), r"(?<=://)[^/\s:@'\"]+:(?!\d*(?:[/\s]|$))[^\s'\"]{0,200}@", "<credentials>@"),
    _Rule(("@",), r"(?<![\w/:.-])[\w.-]+:[^\s/@:'\"]+@(?!sha\d)(?=\w)", "<credentials>@"),
    _Rule(("authorization",), rf"(?i)(?<![a-z])(authorization\s*[=:]\s*{_SCHEMES})(?!{_STAND_IN})\S+", r"\1<secret>"),
    _Rule(("authorization",), rf"(?i)(?<![a-z])(authorization\s*[=:]\s*)(?!{_STAND_IN}|{_SCHEMES})\S+", r"\1<secret>"),
    _Rule(("bearer",), rf"(?i)\b(bearer)\s+(?!{_STAND_IN})\S{{6,}}", r"\1 <secret>"),
    _Rule(_KEYS, rf"(?i)(?<![a-z/])({_KEYED})([\"']?\s*[=:]\s*[\"']?)(?!{_STAND_IN})[^\s&\"']+", r"\1\2<secret>"),
    _Rule(_KEYS, rf"(?i)(?<![a-z/])({_KEYED})( +)(?!{_STAND_IN}|bearer\b)\S{{6,}}", r"\1\2<secret>"),
    # CUDA_VISIBLE_DEVICES takes the first characters of a UUID, too.
    _Rule(
        ("gpu-", "mig-"),
        r"\b(?:GPU|MIG)-(?=[a-fA-F-]*\d)[0-9a-fA-F]{6,8}(?:-[0-9a-fA-F]{4}){0,3}(?:-[0-9a-fA-F]{12})?\b",
        "<gpu-uuid>",
    ),
    _Rule(("-",), r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b", "<uuid>", times=4),
    _Rule((":",), r"\b(?:[0-9a-fA-F]{2}:){5,19}[0-9a-fA-F]{2}\b", "<mac>", times=5),
    _Rule(("-",), r"\b(?=[\d-]{0,16}[a-fA-F])(?:[0-9a-fA-F]{2}-){5}[0-9a-fA-F]{2}\b", "<mac>", times=5),
    # systemd names what has no place by its hardware address. NCCL takes the beginning of a name for the whole.
    _Rule(("enx", "wlx", "wwx"), r"\b(enx|wlx|wwx)[0-9a-f]{4,12}\b", r"\1<mac>"),
    _Rule(("/users/",), r"(?i)(/mnt/[a-z]/users/)(?!<user>)(?:[^/\n'\":,]+(?=/)|[^/\s'\":,]+)", r"\1<user>"),
    _Rule(("\\users\\",), r"(?i)(\\users\\)(?!<user>)[^\\\n'\":,]+", r"\1<user>"),
    _Rule(("/home/", "/users/"), r"(/(?:[hH]ome|[uU]sers)/)(?!<user>)[^/\s'\":,;)\]]+", r"\1<user>"),
    _Rule(("/media/", "/run/user/"), r"(?<![\w.])(/(?:media|run/user)/)(?!<user>)[^/\s'\":,;)\]]+", r"\1<user>"),
    _Rule(
        ("serial", "s/n"),
        r"(?i)(?<![a-z])((?:serial(?:[ _-]?(?:number|no))?|s/n)[\"']?\s*[=:]\s*[\"']?)[\w-]+",
        r"\1<serial>",
    ),
    _Rule(("@",), r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b", "<mail>"),
)
_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_QUAD = rf"{_OCTET}(?:\.{_OCTET}){{3}}(?!\.?\d)(?![A-Za-z_])"
_THIS_HOST = rf"(?:127(?:\.{_OCTET}){{3}}|0\.0\.0\.0)(?!\.?\d)"
_BEFORE = ("//", "@", "[", "from ", "host ", "host=", "addr ", "addr=", "address ", "to ", "ip=", "ip ", "::ffff:")
_GROUP = r"[0-9a-fA-F]{1,4}"
_ADDRESSES = (
    # Four-part versions (a cuBLAS of 13.1.0.3) look like addresses: only what stands as one is taken, and what no version is.
    _Rule(
        (".",),
        rf"(?i)(?!{_THIS_HOST})(?:"
        rf"(?:{'|'.join(f'(?<={re.escape(before)})' for before in _BEFORE)}){_QUAD}"
        rf"|(?<![\d.=-]){_OCTET}(?:\.{_OCTET}){{3}}(?=[:/]\d)"
        rf"|(?<![\d.])(?=192\.168\.|172\.(?:1[6-9]|2\d|3[01])\.|169\.254\.|100\.(?:6[4-9]|[7-9]\d|1[01]\d|12[0-7])\.){_QUAD})",
        "<address>",
        times=3,
    ),
    _Rule(("ip-",), r"(?i)\bip(?:-\d{1,3}){4}\b", "<address>"),
    _Rule(
        (":",),
        rf"(?<![\w:.])(?:{_GROUP}:){{3,7}}{_GROUP}(?![\w:]|\.\w)"
        # Shortened ones begin as no name of C++ does (c10::ad is one): 2000::/3, fc00::/7, fe80::/10.
        rf"|(?<![\w.])(?<![0-9a-fA-F:]:)(?:[23][0-9a-fA-F]{{3}}|[fF][c-eC-E][0-9a-fA-F]{{2}})(?::{_GROUP}){{0,6}}::(?:{_GROUP}(?::{_GROUP}){{0,6}})?(?!\w)",
        "<address>",
        times=2,
    ),
)
_ANY_ADDRESS = (_Rule((".",), rf"(?!{_THIS_HOST})(?<![\w.])(?<![A-Za-z]-)(?<![=<>~!]=){_QUAD}", "<address>", times=3),)
_SECRET_NAMES = ("token", "key", "secret", "password", "passwd", "credential", "username", "_auth", "header", "cookie")
_HOST = rf"(?<![\w<.-])(?!{_STAND_IN}|(?:localhost|auto|local|\d+)(?![\w.-])|{_THIS_HOST})[A-Za-z0-9][\w.-]*(?!>)"
# Sections of what programs and the kernel say, where four numbers are an address.
_SAID = frozenset({"readers", "nvml", "containers", "kernel_log", "processes", "network", "places"})
# Accounts that name nobody, and names of folders that many paths have.
_COMMON = frozenset(
    """
    root ubuntu debian fedora nvidia dgx spark user users admin docker vllm torch triton cuda python conda jovyan runner
    build test app apps data models model cache hub home lib lib64 bin opt usr var tmp mnt srv media etc src dev local share
    work workspace shared default lost+found linuxbrewer linuxbrew envs env venv site-packages dist-packages include
    """.split()  # noqa: SIM905 - a list of them takes a line for each word
)


def _home() -> str:
    """Return this user's home folder where its path names a person; it is shown as ~, which can be pasted."""
    home = os.environ.get("HOME", "").rstrip("/")
    return home if home.startswith(("/home/", "/Users/", "/var/home/")) or home.rpartition("/")[2] in _people() else ""


@functools.cache
def _people() -> frozenset[str]:
    """Return the names of this machine's people: accounts that are no system's, folders in /home, and who asks."""
    names = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")}
    # The file, not the C library: a directory service may take seconds to answer.
    accounts = (line.split(":") for line in reading.text("/etc/passwd").splitlines())
    names |= {fields[0] for fields in accounts if len(fields) > 2 and fields[2].isdecimal() and 1000 <= int(fields[2]) < 60000}
    names |= set(reading.names("/home"))
    return frozenset(name for name in names if len(name) > 1 and name.lower() not in _COMMON)


@functools.cache
def _named(people: frozenset[str]) -> re.Pattern[str]:
    names = "|".join(map(re.escape, sorted(people, key=len, reverse=True))) or "(?!)"
    return re.compile(rf"(?<=[/\\~])(?:{names})(?![A-Za-z0-9])|\b(?:{names})(?=@)")


def _settled(once: Callable[[str], str], value: str) -> str:
    """Redact until nothing changes: where one thing went, what was glued to it may stand alone now, and a replay must not differ."""
    for _ in range(_MOST_ROUNDS):
        before, value = value, once(value)
        if value == before:
            break
    return value


def text(value: str) -> str:
    """Return `value` without tokens, credentials, identifiers, addresses, the names in home paths, and control characters."""
    return _settled(_text, value)


def _text(value: str) -> str:
    if (home := _home()) and home in value:
        value = re.sub(rf"(?<![\w./~-]){re.escape(home)}(?=[/\s'\":,;)\]]|$)", "~", value)
    value = _applied(_RULES, value)
    if not value.isprintable():  # a terminal obeys control characters, and what is read may hold any
        value = "".join(sign if sign.isprintable() or sign in "\t\n" else " " if sign.isspace() else "?" for sign in value)
    return _applied(_ADDRESSES, value)


def _applied(rules: Sequence[_Rule], value: str) -> str:
    """Apply the rules that may match. Outside ASCII a pattern may take one letter for another (the long s for s): there each is tried."""
    small, plain = value.lower(), value.isascii()
    for rule in rules:
        if not plain or any(small.count(needle) >= rule.times for needle in rule.needles):
            value = re.sub(rule.pattern, rule.replacement, value)
    return value


def said(value: str) -> str:
    """Return a text of a program or of the kernel as `text` does, and without any address: four numbers are no version there."""
    return _settled(_said, value)


def _said(value: str) -> str:
    return _applied(_ANY_ADDRESS, _text(value))


def variable(name: str, value: str) -> str:
    """Return a variable's value: of a secret only that it is set, of a host nothing, of a version all."""
    small = name.casefold()
    if any(part in small for part in _SECRET_NAMES) or small.endswith(("_user", "_pass")):
        return value if value in {"<set>", "<file>"} else "<set>"
    if "VERSION" in name:
        return text(value)
    return _settled(_hosts, value) if "HOST" in name or "ADDR" in name or name.endswith("_IP") else said(value)


def _hosts(value: str) -> str:
    value = _said(value)
    return value if "/" in value else re.sub(_HOST, "<host>", value)


def tree(value: Any, section: str = "") -> Any:  # noqa: ANN401 - any part of a snapshot
    """Return the same data with every string redacted, to be given away (a value stays one; keys of dicts are names, and stay).

    Here people's names go from all paths. On the page they stay where a home folder is elsewhere: commands are to be pasted.
    """
    if isinstance(value, str):
        once = _said if section in _SAID else _text
        return (
            _settled(lambda value: _named(_people()).sub("<user>", once(value)), value)
            if len(value) > 2 or not value.isprintable()
            else value
        )
    if hasattr(value, "__value_fields__"):
        return replace(value, **{name: tree(getattr(value, name), section or name) for name in value.__value_fields__})
    if isinstance(value, tuple):
        return tuple(tree(item, section) for item in value)
    if isinstance(value, dict):
        return {key: tree(variable(key, item) if section == "variables" else item, section) for key, item in value.items()}
    return value
