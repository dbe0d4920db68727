"""A build as a chain of stages, each a pure function of its inputs.

A stage's key is the sha256 of its inputs and of the keys of the stages it stands on. What it made lies in the output
folder; its record, written last, says with which key. A stage whose record has its key and whose output is still
there is not run again: nothing changed means nothing done, killed anywhere means resumed there.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from envbuilder.errors import EnvbuilderError
from envbuilder.files import digest_of, remove_tree, storage_errors, write_json
from envbuilder.turns import alone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envbuilder.console import Console, Step
    from envbuilder.layout import Layout

Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One link of the chain.

    `inputs` is all, beside the stages in `after`, that the result depends on; `revision` is raised when the stage's
    own code comes to make something else of the same inputs. `run` returns the result that is recorded (JSON);
    `intact` says of a recorded result whether what it speaks of is still there.
    """

    name: str
    inputs: Any
    run: Callable[[Step], Result]
    after: tuple[str, ...] = ()
    revision: int = 1
    intact: Callable[[Result], bool] = lambda _: True


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a stage ended: `status` is done, kept or not-run; `seconds` are those of the run that made the result."""

    name: str
    status: str
    key: str
    seconds: float
    detail: str
    result: Result


@dataclass
class Chain:
    """Runs stages in order and remembers how each ended."""

    layout: Layout
    console: Console
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def run(self, stage: Stage) -> Result:
        """Run a stage, or keep what it made before. What it raises ends the build; its record is then not written."""
        key = self._key(stage)
        if kept := self._recorded(stage, key):
            self.outcomes[stage.name] = kept
            return kept.result
        path = self.layout.stages / f"{stage.name}.json"
        remove_tree(path)  # from here on the old output is being replaced
        with self.console.step(stage.name) as step:
            result = stage.run(step)
        record = {"key": key, "seconds": round(step.seconds, 2), "detail": step.detail, "result": result}
        write_json(path, record)
        self.outcomes[stage.name] = Outcome(
            name=stage.name, status="done", key=key, seconds=step.seconds, detail=step.detail, result=result
        )
        return result

    def skip(self, name: str, why: str) -> None:
        """Note that a stage is not run, and why; it stands in every report as such."""
        self.console.line(f"- {name:<18}   not run  {why}")
        self.outcomes[name] = Outcome(
            name=name, status="not-run", key=digest_of(["not-run", name, why]), seconds=0.0, detail=why, result={}
        )

    def _key(self, stage: Stage) -> str:
        return digest_of(
            {
                "stage": stage.name,
                "revision": stage.revision,
                "inputs": stage.inputs,
                "after": {name: self.outcomes[name].key for name in stage.after},
            }
        )

    def _recorded(self, stage: Stage, key: str) -> Outcome | None:
        try:
            record = json.loads((self.layout.stages / f"{stage.name}.json").read_bytes())
            if record["key"] != key or not stage.intact(record["result"]):
                return None
            return Outcome(
                name=stage.name, status="kept", key=key, seconds=record["seconds"], detail=record["detail"], result=record["result"]
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None  # no record, or none that can be read: the stage runs


class Forecast(Chain):
    """A chain that runs nothing: it tells which stages would be kept."""

    def run(self, stage: Stage) -> Result:
        """Return what a stage has recorded, if it would be kept; else nothing."""
        key = self._key(stage)
        to_do = Outcome(name=stage.name, status="to-do", key=key, seconds=0.0, detail="", result={})
        self.outcomes[stage.name] = self._recorded(stage, key) or to_do
        return self.outcomes[stage.name].result


@contextlib.contextmanager
def exclusive(layout: Layout, console: Console) -> Iterator[None]:
    """Hold the output folder for this process alone; another build of it waits, and says so.

    What a killed build left in the scratch folder is removed on the way in and on the way out.
    """
    with alone(layout.out / ".lock", console, f"another build is at work in {layout.out}"):
        try:
            with storage_errors(layout.out):
                remove_tree(layout.scratch)
                for folder in (layout.stages, layout.log("x").parent, layout.scratch):
                    folder.mkdir(parents=True, exist_ok=True)
            yield
        finally:
            with contextlib.suppress(OSError, EnvbuilderError):
                remove_tree(layout.scratch)
