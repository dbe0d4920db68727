"""Reading the world into one frozen snapshot: a machine, and an environment on it."""

from __future__ import annotations

from envbuilder.facts.detect import Identity, Machine, detect_target, identify

__all__ = ["Identity", "Machine", "detect_target", "identify"]
