"""Markers are answered for what is built, not by the machine that builds."""

from __future__ import annotations

from packaging.markers import default_environment

from envbuilder.targets.markers import marker_environment


def test_no_answer_is_left_to_this_machine() -> None:
    """What is left out, `packaging` answers for the running kernel and Python: the same lock would give other wheels elsewhere."""
    assert marker_environment("3.11.2", "aarch64").keys() == default_environment().keys()
