from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from envbuilder.store import fetch as room
from envbuilder.store.cache import Store
from tests.unit.store.sources import NAME, Files

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_httpserver import HTTPServer


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting between attempts is for the real world."""
    real = room.urllib3.Retry
    monkeypatch.setattr(room.urllib3, "Retry", lambda **options: real(**{**options, "backoff_factor": 0}))
    monkeypatch.setattr(room, "_SPARE_BYTES", 0)


@pytest.fixture
def files(httpserver: HTTPServer) -> Files:
    served = Files()
    httpserver.expect_request(f"/files/{NAME}").respond_with_handler(served)
    return served
