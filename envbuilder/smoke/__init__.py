"""The canary: a tiny model with one right answer, quantized and served by the environments that were built.

`quantize` and `serve` measure and judge; neither raises when the canary fails, so that the document is written either
way. `document` puts the two together, `require` raises if they did not prove what they must.
"""

from __future__ import annotations

from envbuilder.smoke.documents import document, not_run, require
from envbuilder.smoke.machine import has_gpu, look
from envbuilder.smoke.quantizing import QuantizeRequest, quantize
from envbuilder.smoke.results import Control, Device, QuantizeResult, ServeResult, Stage, Status, from_json, to_json
from envbuilder.smoke.serving import ServeRequest, serve

__all__ = [
    "Control",
    "Device",
    "QuantizeRequest",
    "QuantizeResult",
    "ServeRequest",
    "ServeResult",
    "Stage",
    "Status",
    "document",
    "from_json",
    "has_gpu",
    "look",
    "not_run",
    "quantize",
    "require",
    "serve",
    "to_json",
]
