"""Taking out what names a person, a machine or a secret, and what a terminal obeys, before anything is saved or printed.

A stand-in depends on nothing but the text around it: the same thing gets the same one wherever it stands, so that
what a saved snapshot compares (a variable with an interface, a path with another) still compares on replay.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
from typing import TYPE_CHECKING, Any

from envbuilder import reading

if TYPE_CHECKING:
    from collections.abc import Callable

_SCHEMES = r"(?:basic|bearer|digest|token)\s+"
_KEYED = r"token|password|passwd|secret|signature|credential|api[_-]?key|access[_-]?key"
_STAND_IN = r"<[a-z-]+>"
_MOST_ROUNDS = 5
# What stands for the taken part is chosen so that the text stays readable.
_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(
            r"\b(?:hf_[A-Za-z0-9]{8,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[A-Za-z0-9_-]{16,}|nvapi-[\w-]{16,}"
            r"|xox[a-z]-[\w-]{10,}|A[KS]IA[A-Z0-9]{16}|pypi-[\w-]{16,}|dckr_pat_[\w-]{16,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*)"
        ),
        "<token>",
    ),
    # Userinfo of an address, to its last @: a password may hold one, or a slash (then a port's digits are no password).
    (re.compile(r"(?<=://)[^/\s'\"]+@"), "<credentials>@"),
    (re.compile(r"(?<=://)[^/\s:@'\"]+:(?!\d*(?:[/\s]|$))[^\s'\"]{0,200}@"), "<credentials>@"),
    (re.compile(r"(?<![\w/:.-])[\w.-]+:[^\s/@:'\"]+@(?!sha\d)(?=\w)"), "<credentials>@"),
    (re.compile(rf"(?i)(?<![a-z])(authorization\s*[=:]\s*{_SCHEMES})(?!{_STAND_IN})\S+"), r"\1<secret>"),
    (re.compile(rf"(?i)(?<![a-z])(authorization\s*[=:]\s*)(?!{_STAND_IN}|{_SCHEMES})\S+"), r"\1<secret>"),
    (re.compile(rf"(?i)\b(bearer)\s+(?!{_STAND_IN})\S{{6,}}"), r"\1 <secret>"),
    (re.compile(rf"(?i)(?<![a-z/])({_KEYED})([\"']?\s*[=:]\s*[\"']?)(?!{_STAND_IN})[^\s&\"']+"), r"\1\2<secret>"),
    (re.compile(rf"(?i)(?<![a-z/])({_KEYED})( +)(?!{_STAND_IN}|bearer\b)\S{{6,}}"), r"\1\2<secret>"),
    # CUDA_VISIBLE_DEVICES takes the first characters of a UUID, too.
    (re.compile(r"\b(?:GPU|MIG)-(?=[a-fA-F-]*\d)[0-9a-fA-F]{6,8}(?:-[0-9a-fA-F]{4}){0,3}(?:-[0-9a-fA-F]{12})?\b"), "<gpu-uuid>"),
    (re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"), "<uuid>"),
    (re.compile(r"\b(?:[0-9a-fA-F]{2}:){5,19}[0-9a-fA-F]{2}\b"), "<mac>"),
    (re.compile(r"\b(?=[\d-]{0,16}[a-fA-F])(?:[0-9a-fA-F]{2}-){5}[0-9a-fA-F]{2}\b"), "<mac>"),
    # systemd names what has no place by its hardware address. NCCL takes the beginning of a name for the whole.
    (re.compile(r"\b(enx|wlx|wwx)[0-9a-f]{4,12}\b"), r"\1<mac>"),
    (re.compile(r"(?i)(/mnt/[a-z]/users/)(?!<user>)(?:[^/\n'\":,]+(?=/)|[^/\s'\":,]+)"), r"\1<user>"),
    (re.compile(r"(?i)(\\users\\)(?!<user>)[^\\\n'\":,]+"), r"\1<user>"),
    (re.compile(r"(/(?:[hH]ome|[uU]sers)/)(?!<user>)[^/\s'\":,;)\]]+"), r"\1<user>"),
    (re.compile(r"(?<![\w.])(/(?:media|run/user)/)(?!<user>)[^/\s'\":,;)\]]+"), r"\1<user>"),
    (re.compile(r"(?i)(?<![a-z])((?:serial(?:[ _-]?(?:number|no))?|s/n)[\"']?\s*[=:]\s*[\"']?)[\w-]+"), r"\1<serial>"),
    (re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b"), "<mail>"),
)
_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_QUAD = rf"{_OCTET}(?:\.{_OCTET}){{3}}(?!\.?\d)(?![A-Za-z_])"
_THIS_HOST = rf"(?:127(?:\.{_OCTET}){{3}}|0\.0\.0\.0)(?!\.?\d)"
_BEFORE = ("//", "@", "[", "from ", "host ", "host=", "addr ", "addr=", "address ", "to ", "ip=", "ip ", "::ffff:")
# Four-part versions (a cuBLAS of 13.1.0.3) look like addresses: only what stands as one is taken, and what no version is.
_ADDRESS = re.compile(
    rf"(?i)(?!{_THIS_HOST})(?:"
    rf"(?:{'|'.join(f'(?<={re.escape(before)})' for before in _BEFORE)}){_QUAD}"
    rf"|(?<![\d.=-]){_OCTET}(?:\.{_OCTET}){{3}}(?=[:/]\d)"
    rf"|(?<![\d.])(?=192\.168\.|172\.(?:1[6-9]|2\d|3[01])\.|169\.254\.|100\.(?:6[4-9]|[7-9]\d|1[01]\d|12[0-7])\.){_QUAD})"
    r"|\bip(?:-\d{1,3}){4}\b"
)
_ANY_ADDRESS = re.compile(rf"(?!{_THIS_HOST})(?<![\w.])(?<![A-Za-z]-)(?<![=<>~!]=){_QUAD}")
_GROUP = r"[0-9a-fA-F]{1,4}"
_ADDRESS_6 = re.compile(
    rf"(?<![\w:.])(?:{_GROUP}:){{3,7}}{_GROUP}(?![\w:]|\.\w)"
    # Shortened ones begin as no name of C++ does (c10::ad is one): 2000::/3, fc00::/7, fe80::/10.
    rf"|(?<![\w.])(?<![0-9a-fA-F:]:)(?:[23][0-9a-fA-F]{{3}}|[fF][c-eC-E][0-9a-fA-F]{{2}})(?::{_GROUP}){{0,6}}::(?:{_GROUP}(?::{_GROUP}){{0,6}})?(?!\w)"
)
_SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL|USERNAME|_USER$|_PASS$|_AUTH|HEADER|COOKIE", re.IGNORECASE)
_HOST_NAME = re.compile(r"HOST|ADDR|_IP$")
_HOST = re.compile(rf"(?<![\w<.-])(?!{_STAND_IN}|(?:localhost|auto|local|\d+)(?![\w.-])|{_THIS_HOST})[A-Za-z0-9][\w.-]*(?!>)")
# Sections of what programs and the kernel say, where four numbers are an address.
_SAID = frozenset({"readers", "nvml", "containers", "kernel_log", "processes", "network", "places"})
# Accounts that name nobody, and names of folders that many paths have.
_COMMON = frozenset(
    [
        "root",
        "ubuntu",
        "debian",
        "fedora",
        "nvidia",
        "dgx",
        "spark",
        "user",
        "users",
        "admin",
        "docker",
        "vllm",
        "torch",
        "triton",
        "cuda",
        "python",
        "conda",
        "jovyan",
        "runner",
        "build",
        "test",
        "app",
        "apps",
        "data",
        "models",
        "model",
        "cache",
        "hub",
        "home",
        "lib",
        "lib64",
        "bin",
        "opt",
        "usr",
        "var",
        "tmp",
        "mnt",
        "srv",
        "media",
        "etc",
        "src",
        "dev",
        "local",
        "share",
        "work",
        "workspace",
        "shared",
        "default",
        "lost+found",
        "linuxbrewer",
        "linuxbrew",
        "envs",
        "env",
        "venv",
        "site-packages",
        "dist-packages",
        "include",
    ]
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
    with contextlib.suppress(OSError):
        names |= set(os.listdir("/home"))  # noqa: PTH208 - names
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
    for pattern, replacement in _RULES:
        value = pattern.sub(replacement, value)
    if not value.isprintable():  # a terminal obeys control characters, and what is read may hold any
        value = "".join(sign if sign.isprintable() or sign in "\t\n" else " " if sign.isspace() else "?" for sign in value)
    return _ADDRESS_6.sub("<address>", _ADDRESS.sub("<address>", value))


def said(value: str) -> str:
    """Return a text of a program or of the kernel as `text` does, and without any address: four numbers are no version there."""
    return _settled(_said, value)


def _said(value: str) -> str:
    return _ANY_ADDRESS.sub("<address>", _text(value))


def variable(name: str, value: str) -> str:
    """Return a variable's value: of a secret only that it is set, of a host nothing, of a version all."""
    if _SECRET_NAME.search(name):
        return value if value in {"<set>", "<file>"} else "<set>"
    if "VERSION" in name:
        return text(value)
    return _settled(_hosts, value) if _HOST_NAME.search(name) else said(value)


def _hosts(value: str) -> str:
    value = _said(value)
    return value if "/" in value else _HOST.sub("<host>", value)


def tree(value: Any, section: str = "") -> Any:  # noqa: ANN401 - any part of a snapshot
    """Return the same data with every string redacted, to be given away (a dataclass stays one; keys of dicts are names, and stay).

    Here people's names go from all paths. On the page they stay where a home folder is elsewhere: commands are to be pasted.
    """
    if isinstance(value, str):
        once = _said if section in _SAID else _text
        return (
            _settled(lambda value: _named(_people()).sub("<user>", once(value)), value)
            if len(value) > 2 or not value.isprintable()
            else value
        )
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {name: tree(getattr(value, name), section or name) for name in value.__dataclass_fields__}
        return dataclasses.replace(value, **changed)
    if isinstance(value, tuple):
        return tuple(tree(item, section) for item in value)
    if isinstance(value, dict):
        return {key: tree(variable(key, item) if section == "variables" else item, section) for key, item in value.items()}
    return value
