"""The machines of tests/machines, for the tests of this folder."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from envbuilder.facts.codec import load, to_json
from envbuilder.facts.snapshot import take
from envbuilder.files import write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuilder.facts.model import Snapshot

sys.path.insert(0, str(Path(__file__).parents[2] / "machines"))


@pytest.fixture(scope="module", autouse=True)
def _redacted_once(redacted_once: None) -> None:
    """Redaction has its tests in facts/test_redact.py: here the same few findings are printed over and over."""


@pytest.fixture(scope="session")
def snapshot_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Snapshot]:
    """Each machine of MACHINES is written and looked at once, for all tests that only read what was found, in whichever process."""
    ours = tmp_path_factory.getbasetemp()
    shared = ours.parent if "PYTEST_XDIST_WORKER" in os.environ else ours

    @functools.cache
    def look(name: str) -> Snapshot:
        from simulated import MACHINES  # noqa: PLC0415 - its folder is on the path from here on

        file = shared / f"{name}.json"
        with FileLock(f"{file}.lock"):
            if not file.exists():
                build = MACHINES[name].build(tmp_path_factory.mktemp("machine"))
                write_json(file, to_json(take(build.world(), environment=build.environment)))
        return load(file)

    return look
