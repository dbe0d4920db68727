"""The canary in real environments: llmcompressor quantizes, vLLM serves, and what must fail does."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envbuilder import smoke
from envbuilder.console import Console
from envbuilder.smoke import plugins
from envbuilder.smoke.judging import VISION_ON_DISK
from envbuilder.smoke.results import ANSWER, Control, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from building import KilledBuild

    from envbuilder.layout import Layout

pytestmark = [pytest.mark.timeout(900), pytest.mark.enable_socket]


@pytest.fixture(scope="module")
def layout(built_cpu: KilledBuild) -> Layout:
    return built_cpu.layout


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The caches of vLLM are kept from one start to the next: it saves 8 s each."""
    return tmp_path_factory.mktemp("serve")


def _quantize(layout: Layout, folder: Path, control: Control = Control.NONE) -> smoke.QuantizeResult:
    request = smoke.QuantizeRequest(python=layout.python("quantize"), work=folder / "canary", log=folder / "quantize.log", control=control)
    return smoke.quantize(request, Console(stream=io.StringIO()))


def _serve(layout: Layout, model: Path, scratch: Path) -> smoke.ServeResult:
    request = smoke.ServeRequest(python=layout.python("serve"), model=model, work=scratch, log=model.parent / "serve.log")
    return smoke.serve(request, Console(stream=io.StringIO()))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantize")


@pytest.fixture(scope="module")
def made(layout: Layout, workshop: Path) -> smoke.QuantizeResult:
    return _quantize(layout, workshop)


@pytest.fixture(scope="module")
def model(made: smoke.QuantizeResult, workshop: Path) -> Path:
    assert made.measured is not None, made.stage
    return workshop / "canary" / "quantized"


def test_the_canary_sings_and_is_the_same_twice(
    layout: Layout, made: smoke.QuantizeResult, model: Path, scratch: Path, tmp_path: Path
) -> None:
    """Fixed seed, fixed threads: two runs leave the same bytes, so a difference is a finding and not noise."""
    first, second = made, _quantize(layout, tmp_path)
    assert first.stage.status is Status.PASSED, first.stage
    assert first.measured is not None
    assert second.measured is not None
    assert first.measured.base == second.measured.base
    assert first.measured.quantized == second.measured.quantized
    assert first.measured.decoded == second.measured.decoded
    vision = next(module for module in first.measured.modules if module.name == VISION_ON_DISK)
    assert vision.disk_error is not None
    assert vision.disk_error < 0.15

    served = _serve(layout, model, scratch)
    document = smoke.document(first, served)
    smoke.require(document)
    assert document["exact"]
    assert document["kernel"]["reference"]
    assert any("reference kernel stood in" in text for text in document["not_proved"])


def test_random_weights_fail_in_both_stages(layout: Layout, scratch: Path, tmp_path: Path) -> None:
    """The negative control: the same code, files and server, and a model that has learned nothing."""
    made = _quantize(layout, tmp_path, Control.RANDOM_WEIGHTS)
    assert made.stage.status is Status.FAILED
    served = _serve(layout, tmp_path / "canary" / "quantized", scratch)
    assert served.serve.status is Status.PASSED  # HTTP 200 throughout: only the text tells
    assert served.decode.status is Status.FAILED
    assert not smoke.document(made, served)["exact"]


def test_a_chat_template_without_bos_fails(layout: Layout, scratch: Path, tmp_path: Path) -> None:
    made = _quantize(layout, tmp_path, Control.TEMPLATE_WITHOUT_BOS)
    assert made.stage.status is Status.PASSED
    served = _serve(layout, tmp_path / "canary" / "quantized", scratch)
    assert served.decoded["served"] == ANSWER
    assert served.decoded["served_chat"] != ANSWER
    assert served.decode.status is Status.FAILED
    assert "chat_template" in served.decode.next


def test_stock_vllm_refuses_and_says_why(layout: Layout, model: Path, scratch: Path) -> None:
    """Stock vLLM has no NVFP4 kernel for CPUs; the day it has one, the stand-in must go. And the root cause is told."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "write", lambda folder: folder.parent / "no-plugin")
        served = _serve(layout, model, scratch)
    assert served.serve.status is Status.FAILED
    assert "NVFP4" in served.serve.reason
    assert "See root cause above" not in served.serve.reason
    assert "Replay: " in served.serve.next


def test_sigkill_of_envbuilder_leaves_no_server(layout: Layout, model: Path, scratch: Path) -> None:
    """The kernel tells nobody but the guard that envbuilder is gone."""
    code = textwrap.dedent(f"""
        from pathlib import Path
        from envbuilder import smoke
        from envbuilder.console import Console
        smoke.serve(smoke.ServeRequest(python=Path({str(layout.python("serve"))!r}), model=Path({str(model)!r}),
                                       work=Path({str(scratch)!r}), log=Path({str(scratch / "killed.log")!r})), Console())
    """)
    mark = f"VLLM_CACHE_ROOT={scratch}"
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL) as asker:
        assert _until(lambda: len(_processes(mark)) >= 3, within_s=120), "guard, API server and engine never came"
        asker.kill()
    assert _until(lambda: not _processes(mark), within_s=30), _processes(mark)


def _until(condition: Callable[[], bool], *, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


def _processes(mark: str) -> list[str]:
    """Return the command lines of all processes that have this variable."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found
