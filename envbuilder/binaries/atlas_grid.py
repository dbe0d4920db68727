"""The atlas as a grid: a row for each vLLM wheel, a column for each torch, and in each cell what the symbols say."""

from __future__ import annotations

from dataclasses import dataclass

from packaging.version import Version

from envbuilder.binaries.verdicts import Kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envbuilder.binaries.atlas import Atlas, AtlasWheel
    from envbuilder.binaries.verdicts import AbiReport

_SHORT = {Kind.CPU_ONLY_TORCH: "c", Kind.TORCH_VERSION: "v", Kind.CUDA_MAJOR: "m", Kind.CUDA_LIBRARY: "m"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One pair. `cause`: the root cause, or None where all extensions load; `failing`, `extensions`: how many."""

    cause: Kind | None
    text: str
    failing: int
    extensions: int
    pinned: bool
    verified: bool

    @property
    def short(self) -> str:
        mark = "✓" if self.cause is None else _SHORT.get(self.cause, "?")
        return mark + ("*" if self.verified else "")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A vLLM wheel against all torches; `pinned` is the torch that its metadata demands."""

    vllm: str
    filename: str
    pinned: str | None
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rows from the newest vLLM on; columns from the oldest torch on, named by their builds."""

    machine: str
    torch: tuple[str, ...]
    rows: tuple[Row, ...]


def grid(atlas: Atlas, machine: str) -> Grid:
    """Judge every pair of one machine."""
    columns = _last_builds([wheel for wheel in atlas.torch if wheel.machine == machine])
    wheels = _last_builds([wheel for wheel in atlas.vllm if wheel.machine == machine])
    verified = {(pair.wheel, pair.torch) for pair in atlas.verified}
    rows = tuple(
        Row(
            vllm=wheel.version,
            filename=wheel.filename,
            pinned=wheel.torch,
            cells=tuple(
                _cell(
                    atlas.check(wheel, torch),
                    pinned=wheel.torch is not None and Version(wheel.torch).release == Version(torch.version).release,
                    verified=(wheel.filename, torch.build or torch.version) in verified,
                )
                for torch in columns
            ),
        )
        for wheel in reversed(wheels)
    )
    return Grid(machine=machine, torch=tuple(torch.build or torch.version for torch in columns), rows=rows)


def _last_builds(wheels: list[AtlasWheel]) -> list[AtlasWheel]:
    """Return one wheel for each version: the last in order, which has the highest build tag."""
    return list({wheel.version: wheel for wheel in sorted(wheels, key=lambda it: (Version(it.version), _build_tag(it.filename)))}.values())


def _build_tag(filename: str) -> int:
    parts = filename.split("-")
    return int(parts[2]) if len(parts) == 6 and parts[2].isdigit() else 0


def _cell(report: AbiReport, *, pinned: bool, verified: bool) -> Cell:
    failing = [extension for extension in report.extensions if extension.fails]
    root = report.causes[0] if report.causes else None
    return Cell(
        cause=root.kind if root else None,
        text=root.text if root else "all extensions load",
        failing=len(failing),
        extensions=len(report.extensions),
        pinned=pinned,
        verified=verified,
    )
