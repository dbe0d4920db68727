"""A server fails in cascades: without this, the last line of a log (`see root cause above`) would be the reason given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envbuilder.smoke import diagnosis

# As vLLM 0.29.0 logs it, shortened.
_REFUSED = """\
(APIServer pid=11) INFO 11-23 14:40:27 [model.py:684] Resolved architecture: Gemma4UnifiedForConditionalGeneration
UserWarning: resource_tracker: There appear to be 2 leaked objects
(EngineCore pid=12) ERROR 11-23 14:40:34 [core.py:999] EngineCore failed to start.
(EngineCore pid=12) ERROR 11-23 14:40:34 [core.py:999] Traceback (most recent call last):
(EngineCore pid=12) ERROR 11-23 14:40:34 [core.py:999]   File "core.py", line 1, in run_engine_core
(EngineCore pid=12) ERROR 11-23 14:40:34 [core.py:999] ValueError: Forced NVFP4 kernel MarlinNvFp4LinearKernel is not supported: no Marlin FP4
(APIServer pid=11) Traceback (most recent call last):
(APIServer pid=11)   File "utils.py", line 2, in wait_for_engine_startup
(APIServer pid=11) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}
"""
_CHAINED = """\
Traceback (most recent call last):
ImportError: /x/_C.abi3.so: undefined symbol: _ZN3c1013MessageLogger

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
ModuleNotFoundError: Could not import module 'Gemma4UnifiedForConditionalGeneration'.
"""


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        (_REFUSED, "ValueError: Forced NVFP4 kernel MarlinNvFp4LinearKernel is not supported: no Marlin FP4"),
        (_CHAINED, "ImportError: /x/_C.abi3.so: undefined symbol: _ZN3c1013MessageLogger"),
        ("api_server.py: error: unrecognized arguments: --nope\n", "api_server.py: error: unrecognized arguments: --nope"),
        ("guard: cannot start /x/python: No such file or directory", "guard: cannot start /x/python: No such file or directory"),
        ("\x1b[31mtorch.OutOfMemoryError: CUDA out of memory.\x1b[0m", "torch.OutOfMemoryError: CUDA out of memory."),
        ("RuntimeError: Engine core initialization failed. See root cause above.", "RuntimeError: Engine core initialization failed. See root cause above."),
        ("INFO: all is well\nDeprecationWarning: soon\n", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_the_first_cause(log: str, cause: str) -> None:
    assert diagnosis.root_cause(log) == cause


@given(st.text())
def test_any_log_can_be_read(log: str) -> None:
    cause = diagnosis.root_cause(log)
    assert cause == "" or "\n" not in cause
    diagnosis.last_line(log)


def test_the_last_line_is_shown_without_its_prefix() -> None:
    assert diagnosis.last_line("(Worker pid=3) INFO 11-23 14:40:42 [x.py:1] Loading weights\n\n") == "Loading weights"
