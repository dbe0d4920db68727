"""Coordinators that do not dawdle."""

from __future__ import annotations

import pytest

from envbuilder.compile import admission


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice a second is often enough for compiles of minutes."""
    monkeypatch.setattr(admission, "_TICK_S", 0.05)
