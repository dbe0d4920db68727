"""The smoke test as part of a build: it tries the server that the target asks for, and again when that is another."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from envbuilder import smoke
from envbuilder.build.smoke_stages import SmokeStages
from envbuilder.build.stages import Chain
from envbuilder.layout import Layout
from envbuilder.targets.catalogue import find_target

if TYPE_CHECKING:
    from pathlib import Path

    from envbuilder.build.plan import Plan
    from envbuilder.console import Console
    from envbuilder.smoke.results import QuantizeResult, ServeResult
    from envbuilder.targets.model import Release


@dataclass
class Build:
    """A build that has come to its smoke test; what the two programs were asked for."""

    layout: Layout
    console: Console
    requests: list[smoke.QuantizeRequest | smoke.ServeRequest] = field(default_factory=list)

    def smoke(self, release: Release) -> dict[str, str]:
        """Return how the stages ended."""
        chain = Chain(layout=self.layout, console=self.console)
        for name in ("assemble-serve", "assemble-quantize", "gates"):
            chain.skip(name, "it is another test's")
        plan = SimpleNamespace(
            target=find_target("dgx-spark")[0],
            release=release,
            interpreter=SimpleNamespace(foreign=False),
            layout=self.layout,
            smoke=True,
        )
        SmokeStages(plan=cast("Plan", plan), chain=chain, console=self.console).run()
        return {name: chain.outcomes[name].status for name in ("quantize", "serve")}


@pytest.fixture
def build(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch, quantized: QuantizeResult, served: ServeResult) -> Build:
    made = Build(layout=Layout.of(tmp_path), console=console)
    (made.layout.canary / "quantized").mkdir(parents=True)
    (made.layout.canary / "quantized" / "config.json").write_text("{}")

    def quantize(request: smoke.QuantizeRequest, _: Console) -> QuantizeResult:
        made.requests.append(request)
        return quantized

    def serve(request: smoke.ServeRequest, _: Console) -> ServeResult:
        made.requests.append(request)
        return served

    monkeypatch.setattr(smoke, "quantize", quantize)
    monkeypatch.setattr(smoke, "serve", serve)
    monkeypatch.setattr(smoke, "has_gpu", lambda: True)
    return made


def test_the_server_gets_the_target_s_variables_and_arguments(build: Build) -> None:
    """The image serves with `--attention-backend TRITON_ATTN`: gated, and without this never tried."""
    release = find_target("dgx-spark")[0].releases["0.23.0"]
    build.smoke(release)
    serve = build.requests[-1]
    assert isinstance(serve, smoke.ServeRequest)
    assert serve.arguments == ("--attention-backend", "TRITON_ATTN")
    assert serve.variables == {"VLLM_NO_USAGE_STATS": "1"}
    assert build.requests[0].variables == {}, "the quantize environment's own, which sets none"


@pytest.mark.parametrize("changed", [{"variables": {"VLLM_X": "1"}}, {"arguments": ("--attention-backend", "FLASHINFER")}])
def test_another_word_of_the_target_is_tried_anew_and_the_same_is_kept(build: Build, changed: dict[str, object]) -> None:
    """A kept stage would say of the new server what was found of the old one."""
    release = find_target("dgx-spark")[0].releases["0.23.0"]
    assert build.smoke(release) == {"quantize": "done", "serve": "done"}
    assert build.smoke(release) == {"quantize": "kept", "serve": "kept"}
    other = release.model_copy(update={"serve": release.serve.model_copy(update=changed)})
    assert build.smoke(other) == {"quantize": "kept", "serve": "done"}
    other = release.model_copy(update={"quantize": release.quantize.model_copy(update={"variables": {"B": "2"}})})
    assert build.smoke(other) == {"quantize": "done", "serve": "done"}
