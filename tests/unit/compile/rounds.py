"""Waiting for what a coordinator has decided, by its rounds and not by a clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from envbuilder.compile.inside import launcher
from envbuilder.compile.policy import GIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuilder.compile.admission import Coordinator

_ROUNDS = 3  # one may be under way, and one may have let another unit start


@dataclass
class Free:
    """So much free memory. A coordinator asks in each of its rounds, so the questions count them."""

    gib: int
    asked: int = 0

    def __call__(self) -> int:
        self.asked += 1
        return self.gib * GIB


def until(come: Callable[[], object], what: str) -> None:
    """Wait for it. The limit only stops a test that fails from hanging."""
    deadline = time.monotonic() + 20
    while not come():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.01)


def settle(serving: Coordinator, *, waiting: int) -> None:
    """Wait until the coordinator knows of so many units that wait, and has looked at them again in a few rounds."""
    free = serving.free
    assert isinstance(free, Free)
    until(
        lambda: sum(client.unit is not None and not client.started for client in [*serving._clients.values()]) == waiting,
        f"a coordinator with {waiting} units that wait",
    )
    seen = free.asked
    until(lambda: free.asked >= seen + _ROUNDS, "another round")


def hurried_launcher(folder: Path) -> Path:
    """Write a launcher that looks after its compile every few milliseconds, not twice a second."""
    text = Path(launcher.__file__).read_text(encoding="utf-8")
    hurried = text.replace("\n_POLL_S = 0.5\n", "\n_POLL_S = 0.05\n")
    assert hurried != text
    (folder / "launcher.py").write_text(hurried, encoding="utf-8")
    return folder / "launcher.py"
