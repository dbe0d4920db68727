"""What every unit test may do: files of its own and loopback sockets. Programs only where the test says so."""

from __future__ import annotations

import importlib
import io
import itertools
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from pytest_socket import socket_allow_hosts

from envbuilder.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterator

_COMPILERS = frozenset({"gcc", "cc", "g++", "as", "ld"})
_INTERPRETER = Path(sys.executable).resolve()
_NOWHERE = Path(os.devnull)
_own_folder: Path | None = None  # of the running test; None: anything goes
_homes = itertools.count()


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    """Refuse to start a program that the running test neither made itself nor asked for (PEP 578)."""
    if _own_folder is None:
        return
    match event, arguments:
        case "subprocess.Popen", (str() | bytes() | os.PathLike() as given, *_):
            program = Path(os.fsdecode(given))
            if program.name not in _COMPILERS and program.resolve() != _INTERPRETER and _own_folder not in program.parents:
                pytest.fail(f"a unit test started {program}; mark it `programs` if it must")
        case (("os.system" | "os.posix_spawn"), _):
            pytest.fail(f"a unit test started a program through {event}; mark it `programs` if it must")
        case _:
            pass


sys.addaudithook(_audit)


def _is_valid_syntax(rule: str, text: str) -> bool:
    """Ask the real rfc3987_syntax: jsonschema imports it, and its 38 grammars take a third of all that the collection of tests takes."""
    if sys.modules.get("rfc3987_syntax") is _made_when_asked:
        del sys.modules["rfc3987_syntax"]
    valid: bool = importlib.import_module("rfc3987_syntax").is_valid_syntax(rule, text)
    return valid


_made_when_asked = ModuleType("rfc3987_syntax")
_made_when_asked.is_valid_syntax = _is_valid_syntax  # type: ignore[attr-defined]
sys.modules.setdefault("rfc3987_syntax", _made_when_asked)


@pytest.fixture(autouse=True)
def _no_stray_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    global _own_folder  # noqa: PLW0603 - an audit hook cannot be removed, only told to look away
    if request.node.get_closest_marker("programs"):
        _own_folder = None
    elif "tmp_path" in request.fixturenames:
        _own_folder = request.getfixturevalue("tmp_path")
    else:
        _own_folder = _NOWHERE  # pytest's folders cost more than most tests: who needs none has none made
    yield
    _own_folder = None


@pytest.fixture(autouse=True)
def _loopback_only() -> None:
    socket_allow_hosts(["127.0.0.1", "::1"], allow_unix_socket=True)


@pytest.fixture(autouse=True)
def _nobody_s_settings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The machine that tests run on has an owner with mirrors, targets and a cache: none of them may decide a test."""
    for name in tuple(os.environ):
        if name.startswith(("PIP_", "UV_", "ENVBUILDER_", "XDG_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    home = tmp_path_factory.getbasetemp() / f"home-{next(_homes)}"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("ENVBUILDER_CONFIG", str(home / "config"))
    monkeypatch.setenv("ENVBUILDER_CACHE", str(home / "cache"))


@pytest.fixture
def said() -> io.StringIO:
    """What the console of this test printed."""
    return io.StringIO()


@pytest.fixture
def console(said: io.StringIO) -> Console:
    return Console(stream=said)
