"""What every unit test may do: files of its own and loopback sockets. Programs only where the test says so."""

from __future__ import annotations

import functools
import gc
import importlib
import io
import itertools
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from pytest_socket import socket_allow_hosts

from envbuilder.console import Console
from envbuilder.facts import driver, redact

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuilder.facts.world import World

_COMPILERS = frozenset({"gcc", "cc", "g++", "as", "ld"})
_INTERPRETER = Path(sys.executable).resolve()
_NOWHERE = Path(os.devnull)
_own_folder: Path | None = None  # of the running test; None: anything goes
_homes = itertools.count()
_empty_home: Path | None = None


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


def pytest_collection_finish() -> None:
    """What was collected lives to the end: the garbage collector need not walk it again and again, and no forked child copies it."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="session", autouse=True)
def _no_power_cut() -> Iterator[None]:
    """No test takes the machine's power away: what a thousand of them write need not reach the disk, which may be a slow one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # as fsync does, it refuses what is no open file
        yield


@pytest.fixture(autouse=True)
def _loopback_only() -> None:
    socket_allow_hosts(["127.0.0.1", "::1"], allow_unix_socket=True)


@pytest.fixture(autouse=True)
def _nobody_s_settings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The machine that tests run on has an owner with mirrors, targets and a cache: none of them may decide a test."""
    for name in tuple(os.environ):
        if name.startswith(("PIP_", "UV_", "ENVBUILDER_", "XDG_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    home = _home(tmp_path_factory)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("ENVBUILDER_CONFIG", str(home / "config"))
    monkeypatch.setenv("ENVBUILDER_CACHE", str(home / "cache"))


def _home(folders: pytest.TempPathFactory) -> Path:
    """Return a home folder with nothing in it: the last test's, if that wrote nothing there, as most do."""
    global _empty_home  # noqa: PLW0603 - from one test to the next
    if _empty_home is None or not _empty_home.is_dir() or any(_empty_home.iterdir()):
        _empty_home = folders.getbasetemp() / f"home-{next(_homes)}"
        _empty_home.mkdir()
    return _empty_home


_redact = redact._text


@functools.cache
def _redacted(value: str, _home: str) -> str:
    return _redact(value)


@pytest.fixture(scope="module")
def redacted_once() -> Iterator[None]:
    """For tests that print the same findings hundreds of times: a text is redacted once, for its result depends on nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redact, "_text", lambda value: _redacted(value, redact._home()) if len(value) < 4096 else _redact(value))
        yield


@pytest.fixture(scope="module")
def asked_once() -> Iterator[None]:
    """For tests that look at one machine in many states: the same driver library gives the same answer, and its child process is half of each look."""
    real, answers = driver._probe, {}

    def probe(world: World, folder: str) -> dict[str, Any]:
        library = Path(folder) / "libnvidia-ml.so.1"
        if not library.is_file():
            return real(world, folder)
        key = (library.read_bytes(), world.live)
        if key not in answers:
            answers[key] = real(world, folder)
        return answers[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_probe", probe)
        yield


@pytest.fixture
def said() -> io.StringIO:
    """What the console of this test printed."""
    return io.StringIO()


@pytest.fixture
def console(said: io.StringIO) -> Console:
    return Console(stream=said)
