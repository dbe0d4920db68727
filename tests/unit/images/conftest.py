"""Inputs of images for every test of this room."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.images.small import small_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from envbuilder.images.inputs import Inputs


@pytest.fixture
def make_inputs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Inputs]:
    def make(**changes: Mapping[str, bytes]) -> Inputs:
        return small_inputs(tmp_path_factory.mktemp("inputs"), **changes)

    return make
