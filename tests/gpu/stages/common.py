"""What every stage shares: its request, and the report that it writes after each check, so that a stage which dies leaves what it had."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSED, FAILED, NOT_RUN = "passed", "failed", "not-run"
_CLIP = 4000


class NotRunError(Exception):
    """A check that cannot be made here; its text says why."""


class Report:
    """The checks of one stage: name, status, figures and, unless it passed, the reason."""

    def __init__(self, request: Path) -> None:
        self.request: dict[str, Any] = json.loads(request.read_text(encoding="utf-8"))
        self.folder = request.parent
        self.checks: list[dict[str, Any]] = []
        self._write()

    @property
    def gpu(self) -> bool:
        """Whether a GPU is to be used."""
        return bool(self.request["gpu"])

    @contextlib.contextmanager
    def check(self, name: str) -> Iterator[dict[str, Any]]:
        """Make one check: it may fill in figures, and fails with whatever is raised. Never raises itself."""
        figures: dict[str, Any] = {}
        started = time.monotonic()
        status, reason = PASSED, ""
        print(f"-- {name}", flush=True)
        try:
            yield figures
        except NotRunError as error:
            status, reason = NOT_RUN, str(error)
        except AssertionError as error:
            status, reason = FAILED, str(error) or traceback.format_exc()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a check that fails must not take the others with it
            traceback.print_exc()
            status, reason = FAILED, f"{type(error).__name__}: {error}"
        entry = {"name": name, "status": status, "reason": reason[:_CLIP], "seconds": round(time.monotonic() - started, 2)}
        self.checks.append({**entry, "figures": figures})
        print(f"   {status} {reason[:300]}", flush=True)
        self._write()

    def require_gpu(self) -> None:
        if not self.gpu:
            raise NotRunError("no GPU here")

    def _write(self) -> None:
        temporary = self.folder / ".checks.json"
        temporary.write_text(json.dumps(self.checks, indent=1), encoding="utf-8")
        temporary.replace(self.folder / "checks.json")


def report() -> Report:
    return Report(Path(sys.argv[1]))
