"""The checks, one module per family of causes."""

from __future__ import annotations
