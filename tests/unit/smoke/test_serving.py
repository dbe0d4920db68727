"""A real HTTP server that answers wrongly: each of these once passed, somewhere, for a working model."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from werkzeug import Response

from envbuilder.errors import ProgramError, SmokeError
from envbuilder.smoke import server, serving
from envbuilder.smoke.client import Client
from envbuilder.smoke.results import ANSWER, Device, ServeResult, Stage, Status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_httpserver import HTTPServer

    from envbuilder.console import Console

pytestmark = pytest.mark.enable_socket
_NAME = "canary-0badcafe"
_REMEDY = "Log: /logs/serve.log\nReplay: python -m server"


@dataclass
class Fake:
    """A server as the waiting sees it: its exit code and its log."""

    code: int | None = None
    log: str = ""

    def exit_code(self) -> int | None:
        return self.code

    def log_text(self) -> str:
        return self.log


@pytest.fixture
def client(httpserver: HTTPServer) -> Iterator[Client]:
    with Client(httpserver.url_for("").rstrip("/"), _NAME, timeout_s=5) as made:
        yield made


def _completion(text: str | None) -> dict[str, Any]:
    return {"choices": [{"text": text, "message": {"content": text}}], "usage": {"completion_tokens": 68}}


def _decode(client: Client) -> ServeResult:
    starting = ServeResult(serve=Stage(status=Status.PASSED), decode=Stage(status=Status.NOT_RUN), device=Device.CPU)
    return serving.decode(starting, client, remedy=_REMEDY)


def _answers(httpserver: HTTPServer, completion: object, chat: object) -> None:
    httpserver.expect_request("/v1/completions").respond_with_json(completion)
    httpserver.expect_request("/v1/chat/completions").respond_with_json(chat)


def test_the_right_text_passes_and_is_timed(httpserver: HTTPServer, client: Client) -> None:
    _answers(httpserver, _completion(ANSWER), _completion(ANSWER))
    result = _decode(client)
    assert result.decode.status is Status.PASSED
    assert result.decoded == {"served": ANSWER, "served_chat": ANSWER}
    assert result.tokens_per_second
    asked = [request.get_json() for request, _ in httpserver.log]
    assert all(body["temperature"] == 0 and body["model"] == _NAME for body in asked)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Sure! The capital of France is Paris, a city of light.", "differs from character 1"),
        (ANSWER[:30], "stops after 30"),
        (ANSWER + " Sang.", "goes on after the end"),
        ("", "no text at all"),
        (None, "no text at all"),
    ],
)
def test_nonsense_with_200_fails(httpserver: HTTPServer, client: Client, text: str | None, said: str) -> None:
    _answers(httpserver, _completion(text), _completion(ANSWER))
    stage = _decode(client).decode
    assert stage.status is Status.FAILED
    assert said in stage.reason
    assert _REMEDY in stage.next


def test_a_wrong_chat_alone_fails_and_points_at_the_template(httpserver: HTTPServer, client: Client) -> None:
    _answers(httpserver, _completion(ANSWER), _completion(" The sananang twe tele"))
    stage = _decode(client).decode
    assert stage.status is Status.FAILED
    assert "served chat" in stage.reason
    assert "chat_template" in stage.next


def test_500_fails_with_what_the_server_said(httpserver: HTTPServer, client: Client) -> None:
    httpserver.expect_request("/v1/completions").respond_with_data("EngineDeadError: gone", status=500)
    stage = _decode(client).decode
    assert stage.status is Status.FAILED
    assert "500" in stage.reason
    assert "EngineDeadError: gone" in stage.reason


@pytest.mark.parametrize("body", [{}, [], {"choices": []}, {"choices": [{"text": "x"}]}, {"error": "no"}, "text"])
def test_200_without_a_completion_fails(httpserver: HTTPServer, client: Client, body: object) -> None:
    _answers(httpserver, body, body)
    stage = _decode(client).decode
    assert stage.status is Status.FAILED
    assert "not a completion" in stage.reason


def test_half_a_reply_fails(httpserver: HTTPServer, client: Client) -> None:
    half = Response('{"choices": [{"te', status=200, content_type="application/json")
    httpserver.expect_request("/v1/completions").respond_with_response(half)
    assert _decode(client).decode.status is Status.FAILED


def test_a_server_that_is_gone_fails() -> None:
    with Client("http://127.0.0.1:9", _NAME, timeout_s=5) as nobody:
        stage = _decode(nobody).decode
    assert stage.status is Status.FAILED
    assert "did not answer" in stage.reason


def test_ready_means_this_model_and_no_other(httpserver: HTTPServer, client: Client) -> None:
    """Another program may have taken the port between our asking for it and the server's binding it."""
    models = [{"id": "somebody-elses"}]
    httpserver.expect_request("/v1/models").respond_with_handler(lambda _: Response(f'{{"data": {models!r}}}'.replace("'", '"')))
    assert not client.ready()
    models.append({"id": _NAME})
    assert client.ready()


def test_a_proxy_in_the_environment_is_not_asked(httpserver: HTTPServer, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    httpserver.expect_request("/v1/models").respond_with_json({"data": [{"id": _NAME}]})
    assert client.ready()


def test_never_ready_is_an_error_with_the_cause(httpserver: HTTPServer, client: Client, console: Console) -> None:
    times = iter(range(0, 1000, 20))
    waiting = Fake(log="INFO Loading weights\n")
    with pytest.raises(SmokeError, match="not ready after 60 s") as caught:
        server.wait_until_ready(waiting, client, timeout_s=60, console=console, clock=lambda: float(next(times)))
    assert "Loading weights" in caught.value.why


def test_an_early_end_is_seen_at_once_and_says_the_root_cause(client: Client, console: Console) -> None:
    """Waiting for a dead server until the time limit would cost ten minutes and hide why."""
    dead = Fake(code=1, log="ValueError: no Marlin\nRuntimeError: Engine core initialization failed. See root cause above.\n")
    with pytest.raises(ProgramError, match="exit code 1") as caught:
        server.wait_until_ready(dead, client, timeout_s=600, console=console)
    assert caught.value.why == "ValueError: no Marlin"


def test_a_killed_server_is_told_by_its_signal(client: Client, console: Console) -> None:
    with pytest.raises(ProgramError, match="signal 9"):
        server.wait_until_ready(Fake(code=137), client, timeout_s=600, console=console)


def test_the_whole_stage_fails_when_the_environment_has_no_vllm(tmp_path: Path, console: Console) -> None:
    """`python` here is this test's own: a real interpreter and a real child, without vLLM."""
    request = serving.ServeRequest(
        python=_interpreter(), model=tmp_path, work=tmp_path / "work", log=tmp_path / "logs" / "serve.log", ready_timeout_s=60
    )
    result = serving.serve(request, console)
    assert result.serve.status is Status.FAILED
    assert "ModuleNotFoundError" in result.serve.reason
    assert "Replay: " in result.serve.next
    assert str(request.log) in result.serve.next
    assert result.decode.status is Status.NOT_RUN


def test_the_whole_stage_fails_when_there_is_no_interpreter(tmp_path: Path, console: Console) -> None:
    request = serving.ServeRequest(python=tmp_path / "none", model=tmp_path, work=tmp_path, log=tmp_path / "serve.log")
    assert serving.serve(request, console).serve.status is Status.FAILED


def test_only_a_cpu_gets_the_stand_in_kernel(tmp_path: Path) -> None:
    """On a GPU the plugin would hide a broken kernel behind a right one."""
    cpu, cuda = (server.command(python=_interpreter(), model=tmp_path, work=tmp_path / d, device=d) for d in (Device.CPU, Device.CUDA))
    assert "plugin" in cpu.env["PYTHONPATH"]
    assert "PYTHONPATH" not in cuda.env
    for command in (cpu, cuda):
        assert command.argv[command.argv.index("--host") + 1] == "127.0.0.1"
        assert "PYTHONDONTWRITEBYTECODE" not in command.env
    assert cpu.name != cuda.name


def test_the_server_finds_the_programs_of_its_environment_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashInfer compiles at the server's start with `ninja`, by its name: off PATH, a Spark's smoke test ended there."""
    monkeypatch.setenv("PATH", "/usr/bin")
    python = tmp_path / "envs/serve/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    ninja = python.with_name("ninja")
    ninja.write_text("#!/bin/sh\n")
    ninja.chmod(0o755)
    for device in Device:
        env = server.command(python=python, model=tmp_path, work=tmp_path / "work", device=device).env
        assert shutil.which("ninja", path=env["PATH"]) == str(ninja)
        assert env["VIRTUAL_ENV"] == str(tmp_path / "envs/serve")


def test_the_server_is_the_one_that_the_target_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attention backend that the image serves with, and that the canary never tried, would be proved by nothing."""
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    command = server.command(
        python=_interpreter(),
        model=tmp_path,
        work=tmp_path,
        device=Device.CUDA,
        variables={"VLLM_A": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_USE_FLASHINFER_SAMPLER": "1"},
        arguments=("--attention-backend", "TRITON_ATTN", "--max-model-len", "8192"),
    )
    assert command.argv[command.argv.index("--attention-backend") + 1] == "TRITON_ATTN"
    assert command.argv.index("8192") < command.argv.index("256"), "of two, vLLM takes the last: the canary's small one"
    assert (command.env["VLLM_A"], command.env["VLLM_LOGGING_LEVEL"]) == ("1", "DEBUG"), "a user's word counts more than the target's"
    assert command.env["VLLM_USE_FLASHINFER_SAMPLER"] == "0", "compiled at the start, and of no use to a greedy canary"


def test_a_canary_of_3_mb_starts_beside_another_model(tmp_path: Path) -> None:
    """Of a Spark's 119.7 GiB vLLM asked for 12 to be free, though the cache's bytes are given, and did not start beside a model."""
    argv = server.command(python=_interpreter(), model=tmp_path, work=tmp_path, device=Device.CUDA).argv
    share, cache = (float(argv[argv.index(option) + 1]) for option in ("--gpu-memory-utilization", "--kv-cache-memory-bytes"))
    assert share * 119.7 < 3
    assert cache < share * 119.7 * 2**30


def test_a_target_for_the_cpu_has_nothing_of_a_gpu_on_its_server(tmp_path: Path) -> None:
    """A vLLM for the CPU knows no such backend, and its server would end at once."""
    command = server.command(python=_interpreter(), model=tmp_path, work=tmp_path, device=Device.CPU)
    assert not {"--attention-backend", "--gpu-memory-utilization", "--kv-cache-memory-bytes"} & set(command.argv)
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in command.env


def test_the_plugin_is_seen_by_an_interpreter_that_has_its_folder_on_the_path(tmp_path: Path) -> None:
    command = server.command(python=_interpreter(), model=tmp_path, work=tmp_path, device=Device.CPU)
    listed = "from importlib.metadata import entry_points; print([e.value for e in entry_points(group='vllm.general_plugins')])"
    shown = subprocess.run([command.argv[0], "-c", listed], env=dict(command.env), capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "['envbuilder_reference_nvfp4:register']"


def _interpreter() -> Path:
    from pathlib import Path  # noqa: PLC0415 - only a type elsewhere in this file

    return Path(sys.executable)
