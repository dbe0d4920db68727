"""A reproducible vLLM environment for NVIDIA DGX Spark, and the proof that it works."""

from __future__ import annotations

__version__ = "0.1.0"
