"""The smoke test as stages of a build: quantizing is kept apart from serving, so that a failed server is tried again alone."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envbuilder import smoke
from envbuilder.build.stages import Stage
from envbuilder.files import sha256_file, write_json
from envbuilder.smoke.children import INSIDE

if TYPE_CHECKING:
    from envbuilder.build.plan import Plan
    from envbuilder.build.stages import Chain, Result
    from envbuilder.console import Console, Step

NAMES = ("quantize", "serve")


@dataclass(frozen=True, kw_only=True)
class SmokeStages:
    """Runs both stages, writes smoke.json after each, and fails the build when the canary does."""

    plan: Plan
    chain: Chain
    console: Console

    def run(self) -> dict[str, Any]:
        """Return what smoke.json says at the end."""
        if reason := self._obstacle():
            return self._skip(reason)
        quantized = smoke.from_json(smoke.QuantizeResult, self._quantize())
        served = smoke.from_json(smoke.ServeResult, self._serve(quantized))
        return self._write(smoke.document(quantized, served))

    def _obstacle(self) -> str:
        """Say why the canary cannot or shall not be tried here; empty when it can."""
        target = self.plan.target
        if not self.plan.smoke:
            return "--no-smoke was given"
        if self.plan.interpreter.foreign:
            return f"the environments are for linux/{self.plan.interpreter.machine}, and this machine is linux/{platform.machine()}"
        if target.device == "cuda" and not smoke.has_gpu():
            return "this machine has no NVIDIA GPU"
        return ""

    def _skip(self, reason: str) -> dict[str, Any]:
        for name in NAMES:
            self.chain.skip(name, reason)
        return self._write(smoke.not_run(reason, device=self._device))

    @property
    def _device(self) -> smoke.Device:
        return smoke.Device(self.plan.target.device)

    def _quantize(self) -> Result:
        layout, variables = self.plan.layout, self.plan.release.quantize.variables

        def run(step: Step) -> Result:
            request = smoke.QuantizeRequest(
                python=layout.python("quantize"),
                work=layout.canary,
                log=layout.log("quantize"),
                device=self._device,
                variables=variables,
            )
            result = smoke.quantize(request, self.console)
            self._require(smoke.document(result, None))
            measured = result.measured
            assert measured is not None  # noqa: S101 - it passed
            step.detail = (
                f"{len(measured.modules)} layers, {measured.base.size / 1e6:.1f} MB to {measured.quantized.size / 1e6:.1f} MB, text exact"
            )
            return smoke.to_json(result)

        def intact(_: Result) -> bool:
            return (layout.canary / "quantized" / "config.json").is_file()

        inputs = {"scripts": _scripts(), "variables": dict(variables)}
        stage = Stage(name="quantize", inputs=inputs, after=("assemble-quantize", "gates"), run=run, intact=intact)
        return self.chain.run(stage)

    def _serve(self, quantized: smoke.QuantizeResult) -> Result:
        layout, told = self.plan.layout, self.plan.release.serve

        def run(step: Step) -> Result:
            request = smoke.ServeRequest(
                python=layout.python("serve"),
                model=layout.canary / "quantized",
                work=layout.canary / "server",  # kept: the replay line of a failed server needs it
                log=layout.log("serve"),
                device=self._device,
                variables=told.variables,
                arguments=told.arguments,
            )
            result = smoke.serve(request, self.console)
            self._require(smoke.document(quantized, result))
            step.detail = f"ready in {result.ready_seconds:.0f} s, text exact over HTTP, {result.tokens_per_second:.0f} tokens/s"
            return smoke.to_json(result)

        model = quantized.measured.quantized.sha256 if quantized.measured else ""
        inputs = {"model": model, "scripts": _scripts(), "variables": dict(told.variables), "arguments": told.arguments}
        return self.chain.run(Stage(name="serve", inputs=inputs, after=("assemble-serve", "gates", "quantize"), run=run))

    def _require(self, document: dict[str, Any]) -> None:
        """Leave the evidence first, then fail if the canary did."""
        self._write(document)
        smoke.require(document)

    def _write(self, document: dict[str, Any]) -> dict[str, Any]:
        """Write smoke.json, unless it says the same already: a build that does nothing changes nothing."""
        path = self.plan.layout.smoke
        try:
            same = json.loads(path.read_bytes()) == document
        except (OSError, ValueError):
            same = False
        if not same:
            write_json(path, document)
        return document


def _scripts() -> dict[str, str]:
    """Return the hashes of what runs inside the environments: the canary's own code is an input like any other."""
    return {path.name: sha256_file(path) for path in sorted(INSIDE.glob("*.py"))}


def in_manifest(document: dict[str, Any]) -> dict[str, Any]:
    """Return the part of smoke.json that does not change from one run to the next: no times and no speeds."""
    stages = {name: stage["status"] for name, stage in document["stages"].items()}
    return {"stages": stages, **{key: document[key] for key in ("expected", "decoded", "exact", "proved", "not_proved", "kernel")}}
