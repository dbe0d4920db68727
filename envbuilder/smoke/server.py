"""A server that is always stopped: with its children, also when envbuilder itself is killed."""

from __future__ import annotations

import contextlib
import secrets
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from envbuilder import process
from envbuilder.errors import ProgramError, SmokeError
from envbuilder.smoke import children, diagnosis, plugins
from envbuilder.smoke.results import Device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from envbuilder.console import Console
    from envbuilder.smoke.client import Client

LOOPBACK = "127.0.0.1"
_GRACE_S = 10.0
_POLL_S = 0.1
_TOLD_EVERY_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Command:
    """How the server is started. `name` is what it calls its model: nobody else's server knows it."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    url: str
    name: str

    @property
    def replay(self) -> str:
        return process.replay_line(self.argv, env=self.env)


class Running(Protocol):
    """As much of a server as waiting for it needs."""

    def exit_code(self) -> int | None: ...
    def log_text(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server under its guard; `log_start` is where its own part of the log begins."""

    guard: subprocess.Popen[bytes]
    log: Path
    log_start: int

    def exit_code(self) -> int | None:
        return self.guard.poll()

    def log_text(self) -> str:
        return diagnosis.read_from(self.log, self.log_start)


def command(
    *, python: Path, model: Path, work: Path, device: Device, variables: Mapping[str, str] | None = None, arguments: tuple[str, ...] = ()
) -> Command:
    """Return vLLM's OpenAI-compatible server for this model, on a free port of this machine only.

    `variables` and `arguments` are the target's. The smoke test's own come after them, and count.
    """
    port, name = _free_port(), f"canary-{secrets.token_hex(4)}"
    argv = [str(python), "-m", "vllm.entrypoints.openai.api_server", *arguments, "--model", str(model), "--served-model-name", name]
    argv += ["--host", LOOPBACK, "--port", str(port), "--dtype", "bfloat16", "--max-model-len", "256", "--max-num-seqs", "2"]
    # Compiling and capturing graphs for 4.6 million parameters proves little and takes minutes. Text only: the canary
    # has learned no image and no sound.
    argv += ["--enforce-eager", "--limit-mm-per-prompt", '{"image":0,"audio":0,"video":0}']
    env = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CACHE_ROOT": str(work / "vllm-cache")}
    match device:
        case Device.CPU:
            env |= {
                "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # containers often forbid binding; one thread needs none
                # The worker lives in the engine's process, as it does on a single GPU: one import of vLLM less (6 s).
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "PYTHONPATH": str(plugins.write(work / "plugin")),
            }
        case Device.CUDA:
            # The canary is greedy and never samples; but vLLM tries its sampler out at every start, and FlashInfer's is compiled
            # for that on the machine. Whether that works is not for a smoke test of weights and kernels to fail on.
            env["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
            # Small and exact: a share of the memory would be tens of GB on a Spark, where GPU and host share it. With the cache's
            # bytes given, vLLM 0.23.0 asks the share for one thing alone: to start, it must be free (2.4 GiB of a Spark's 119.7).
            argv += ["--gpu-memory-utilization", "0.02", "--kv-cache-memory-bytes", str(256 << 20), "--max-num-batched-tokens", "512"]
    env = children.variables(python, chosen=variables, extra=env)
    return Command(argv=tuple(argv), env=env, url=f"http://{LOOPBACK}:{port}", name=name)


@contextlib.contextmanager
def started(argv: tuple[str, ...], *, env: Mapping[str, str], log: Path) -> Iterator[Server]:
    """Start a server under its guard; whatever happens inside, it and all that it started are gone afterwards."""
    children.make_room(log)
    with log.open("ab") as sink:
        sink.write(f"$ {process.replay_line(argv, env=env)}\n".encode())
        sink.flush()
        guarded = [sys.executable, "-IS", str(children.INSIDE / "guard.py"), "--grace", str(_GRACE_S), "--", *argv]
        guard = subprocess.Popen(
            guarded, stdin=subprocess.PIPE, stdout=sink, stderr=subprocess.STDOUT, env=dict(env), start_new_session=True
        )
        try:
            yield Server(guard=guard, log=log, log_start=sink.tell())
        finally:
            stop(guard)


def stop(guard: subprocess.Popen[bytes]) -> None:
    """Close the pipe, which is the guard's sign to end everything, and wait until it has."""
    if guard.stdin:
        guard.stdin.close()
    try:
        guard.wait(timeout=_GRACE_S * 2 + 5)
    except subprocess.TimeoutExpired:  # a process that the kernel cannot end at once (it waits for a device)
        process.kill_group(guard)


def wait_until_ready(
    server: Running, client: Client, *, timeout_s: float, console: Console, clock: Callable[[], float] = time.monotonic
) -> float:
    """Return the seconds until the server had its model. Raises SmokeError or ProgramError: died, or never ready."""
    begun = told = clock()
    while not client.ready():
        code, now = server.exit_code(), clock()
        if code is not None:
            raise ProgramError(f"the server ended before it was ready, {_ending(code)}", why=_cause(server))
        if now - begun > timeout_s:
            raise SmokeError(f"the server was not ready after {timeout_s:.0f} s", why=_cause(server) or "it is still starting")
        if now - told >= _TOLD_EVERY_S:
            told = now
            console.line(f"  the server is starting, {now - begun:.0f} s: {diagnosis.last_line(server.log_text())[:60]}")
        time.sleep(_POLL_S)
    return clock() - begun


def _ending(code: int) -> str:
    return f"killed by signal {code - 128}" if code > 128 else f"with exit code {code}"


def _cause(server: Running) -> str:
    text = server.log_text()
    return diagnosis.root_cause(text) or diagnosis.last_line(text)


def _free_port() -> int:
    """Ask the kernel for one. Should another program take it in between, the server says so and ends."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
