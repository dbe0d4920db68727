"""The quantized canary is served by the serve environment, decoded over HTTP, and compared."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from envbuilder.errors import EnvbuilderError
from envbuilder.smoke import children, judging, plugins, server
from envbuilder.smoke.results import ANSWER, PROMPT, Device, ServeResult, Stage, Status

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from envbuilder.console import Console
    from envbuilder.smoke.client import Client

_KERNEL = re.compile(r"Using (\w+) for NVFP4")
_MORE_TOKENS = 4  # than the answer has: a model that does not stop is seen to go on
_MEASURED_TOKENS = 128
_SERVED = ("served", "served_chat")


@dataclass(frozen=True, kw_only=True)
class ServeRequest:
    """`work` is scratch: the plugin and vLLM's caches. Kept, it saves the next start 8 s.

    `variables` and `arguments` are the target's, for its servers: what is proved is the server that it asks for.
    """

    python: Path
    model: Path
    work: Path
    log: Path
    device: Device = Device.CPU
    variables: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    ready_timeout_s: float = 600.0
    answer_timeout_s: float = 120.0


def serve(request: ServeRequest, console: Console) -> ServeResult:
    """Serve, decode, judge, stop. Never raises for a server that failed: the result says so."""
    from envbuilder.smoke.client import Client  # noqa: PLC0415 - a build that serves nothing need not load requests

    begun = time.monotonic()
    result = ServeResult(serve=Stage(status=Status.FAILED), decode=_not_run("the server did not start"), device=request.device)
    remedy = f"Log: {request.log}"
    try:
        versions = children.probe(request.python, log=request.log).versions
        result = replace(result, versions=versions)
        command = server.command(
            python=request.python,
            model=request.model,
            work=request.work,
            device=request.device,
            variables=request.variables,
            arguments=request.arguments,
        )
        remedy += f"\nReplay: {command.replay}"
        with (
            server.started(command.argv, env=command.env, log=request.log) as running,
            Client(command.url, command.name, timeout_s=request.answer_timeout_s) as client,
        ):
            ready_s = server.wait_until_ready(running, client, timeout_s=request.ready_timeout_s, console=console)
            log = running.log_text()
            named = _KERNEL.search(log)
            result = replace(
                result,
                serve=Stage(status=Status.PASSED, seconds=_since(begun)),
                ready_seconds=round(ready_s, 1),
                reference_kernel=plugins.REPORT in log,
                kernel=named.group(1) if named else "",
            )
            return decode(result, client, remedy=remedy)
    except EnvbuilderError as error:
        failed = Stage(status=Status.FAILED, seconds=_since(begun), reason=children.told(error), next=remedy)
        return replace(result, serve=failed)


def decode(result: ServeResult, client: Client, *, remedy: str) -> ServeResult:
    """Ask for the one right answer in both ways; a server that answers nonsense with 200 has failed."""
    begun = time.monotonic()
    decoded: dict[str, str] = {}
    speed: float | None = None
    length = len(ANSWER) + _MORE_TOKENS  # the canary's tokens are bytes, and the answer is ASCII
    try:
        decoded["served"] = client.complete(PROMPT, most_tokens=length).text
        decoded["served_chat"] = client.chat(PROMPT, most_tokens=length).text
        reason = "; ".join(judging.judge_texts(ANSWER, decoded, _SERVED))
        if not reason:
            warm = client.complete(PROMPT, most_tokens=_MEASURED_TOKENS, to_the_end=False)
            speed = round(warm.tokens / warm.seconds, 1)
    except EnvbuilderError as error:
        reason = children.told(error)
    if decoded:
        remedy = f"{judging.advice(decoded, ANSWER, gpu=result.device is Device.CUDA)}\n{remedy}"
    status = Status.FAILED if reason else Status.PASSED
    stage = Stage(status=status, seconds=_since(begun), reason=reason, next=remedy if reason else "")
    return replace(result, decode=stage, decoded=decoded, tokens_per_second=speed)


def _not_run(reason: str) -> Stage:
    return Stage(status=Status.NOT_RUN, reason=reason)


def _since(begun: float) -> float:
    return round(time.monotonic() - begun, 1)
