"""The places that a compile may run in, on this machine's own kernel: what they hide, and that there is no network."""

from __future__ import annotations

import os
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from envbuilder.compile import isolation
from envbuilder.compile.isolation import Isolation, Way
from envbuilder.errors import ProgramError
from tests.integration.engines import docker_engine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.programs]

LOOK = "ls / ; echo '--'; ls /build; echo '--'; hostname; touch /usr/x 2>&1; touch /build/made"


def isolated(folder: Path, way: Way) -> Isolation:
    """Give a place of this kind, or skip where the machine does not allow it."""
    chosen = isolation.choose(folder, log=folder / "log")
    if way is Way.ROOT and os.getuid() != 0:
        pytest.skip("only root can do without a user namespace")
    place = Isolation(way=way, workspace=folder, python=chosen.python)
    try:
        place.run(["/bin/true"], variables={}, log=folder / "log", what="trying")
    except ProgramError as error:
        pytest.skip(f"this machine allows no {way.value}: {error.why}")
    return place


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with docker_engine(tmp_path_factory.mktemp("engine")):
        yield


@pytest.fixture(params=list(Way)[:-1])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Isolation:
    if request.param is Way.ENGINE:
        request.getfixturevalue("engine")
    return isolated(tmp_path, request.param)


def said(place: Isolation, command: list[str]) -> str:
    log = place.workspace / "said"
    log.unlink(missing_ok=True)
    place.run(command, variables={"PATH": "/usr/bin:/bin"}, log=log, what="looking around")
    return log.read_text().partition("\n")[2]


def test_nothing_of_the_machine_is_there_but_its_usr(place: Isolation) -> None:
    """A file of the user's home, or of /etc, that got into a compile would make its bytes this machine's own."""
    text = said(place, ["/bin/sh", "-c", LOOK + "; true"])
    root = set(text.partition("--")[0].split())
    assert "usr" in root
    assert not {"home", "var", "opt", "srv", "mnt", "run"} & root
    assert "Read-only file system" in text
    assert "envbuilder\n" in text
    assert (place.workspace / "made").exists()


@pytest.mark.parametrize("address", ["192.0.2.1", "127.0.0.1"])
def test_no_address_can_be_reached(place: Isolation, address: str) -> None:
    """Not the world, and nothing that listens on this machine's own loopback (a container has one, but another)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket; socket.create_connection(('{address}', {server.getsockname()[1]}), timeout=3)"
        with pytest.raises(ProgramError) as error:
            said(place, [str(place.python), "-IS", "-c", code])
    loopback_of_its_own = place.way is Way.ENGINE and address == "127.0.0.1"
    assert ("Connection refused" if loopback_of_its_own else "Network is unreachable") in error.value.why


def test_no_variable_of_the_user_s_comes_along(place: Isolation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXXFLAGS", "-march=native")
    assert said(place, ["/usr/bin/env"]).split() == ["PATH=/usr/bin:/bin"]


def test_what_runs_inside_ends_with_the_one_who_started_it(place: Isolation) -> None:
    """Else an interrupted build goes on in a place that nobody sees any more."""
    with pytest.raises(ProgramError, match="stopped after"):
        place.run(["/bin/sleep", "4242"], variables={"PATH": "/usr/bin:/bin"}, log=place.workspace / "log", what="sleeping", timeout_s=2)
    assert "sleep 4242" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_where_nothing_is_allowed_it_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not isolated is a result, not an error; but never one that passes for isolated."""

    def refuse(self: Isolation, *_: object, **__: object) -> None:
        raise ProgramError(f"trying isolation: python3 ended with exit code {isolation.NO_PLACE}", why=f"{self.way.value}: not permitted")

    monkeypatch.setattr(Isolation, "run", refuse)
    chosen = isolation.choose(tmp_path, log=tmp_path / "log")
    assert chosen.way is Way.NONE
    assert chosen.root == tmp_path
    assert "not permitted" in isolation.describe(chosen)["why"]
    assert isolation.describe(chosen)["way"] == "not-isolated"
