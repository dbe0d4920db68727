"""Reading the world into one frozen snapshot: a machine, and an environment on it."""

from __future__ import annotations
