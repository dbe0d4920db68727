"""The atlas as a picture for the documentation: two grids, one for each architecture."""

from __future__ import annotations

from xml.sax.saxutils import escape

from envbuilder.binaries.atlas_grid import Cell, Grid, grid
from envbuilder.binaries.verdicts import Kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuilder.binaries.atlas import Atlas

_CELL_W, _CELL_H, _LABEL_W, _HEAD_H, _GAP = 64, 20, 66, 64, 40
_LOADS, _NO_CUDA, _OTHER_TORCH, _OTHER_CUDA, _ELSE = "#2e9e6b", "#d9d9d9", "#d9822b", "#c0504d", "#8e6bbf"
_COLOURS = {
    None: _LOADS,
    Kind.CPU_ONLY_TORCH: _NO_CUDA,
    Kind.TORCH_VERSION: _OTHER_TORCH,
    Kind.CUDA_LIBRARY: _OTHER_CUDA,
    Kind.CUDA_MAJOR: _OTHER_CUDA,
}
_LEGEND = (
    (_LOADS, "every extension loads"),
    (_NO_CUDA, "torch without CUDA"),
    (_OTHER_TORCH, "built for another torch"),
    (_OTHER_CUDA, "built for another CUDA"),
    (_ELSE, "else"),
)


def draw(atlas: Atlas) -> str:
    """Return the picture. In each cell: how many extensions would not load; a frame where vLLM pins that torch."""
    grids = [grid(atlas, machine) for machine in ("aarch64", "x86_64")]
    width = max(_LABEL_W + _CELL_W * len(table.torch) for table in grids) + 40
    height = sum(_HEAD_H + _CELL_H * len(table.rows) + _GAP for table in grids) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" font-size="11">',
        f"<title>vLLM and torch releases: which pairs load, by their symbols ({escape(atlas.made)})</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    top = 20
    for table in grids:
        parts += _grid(table, top)
        top += _HEAD_H + _CELL_H * len(table.rows) + _GAP
    parts += _legend(top - 10)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _grid(table: Grid, top: int) -> Iterator[str]:
    yield f'<text x="20" y="{top + 12}" font-size="14" font-weight="bold">{escape(table.machine)}: vLLM (down) and torch (across)</text>'
    for column, name in enumerate(table.torch):
        x = 20 + _LABEL_W + column * _CELL_W + _CELL_W // 2
        release, _, local = name.partition("+")
        yield f'<text x="{x}" y="{top + 38}" text-anchor="middle">{escape(release)}</text>'
        yield f'<text x="{x}" y="{top + 52}" text-anchor="middle" fill="#777777">{escape(local or "?")}</text>'
    for number, row in enumerate(table.rows):
        y = top + _HEAD_H - 4 + number * _CELL_H
        yield f'<text x="{20 + _LABEL_W - 8}" y="{y + 14}" text-anchor="end">{escape(row.vllm)}</text>'
        for column, cell in enumerate(row.cells):
            yield from _cell(cell, 20 + _LABEL_W + column * _CELL_W, y, f"vLLM {row.vllm}, torch {table.torch[column]}")


def _cell(cell: Cell, x: int, y: int, title: str) -> Iterator[str]:
    frame = ' stroke="#111111" stroke-width="2"' if cell.pinned else ' stroke="#ffffff"'
    colour = _COLOURS.get(cell.cause, _ELSE)
    yield f"<g><title>{escape(f'{title}: {cell.text}')}</title>"
    yield f'<rect x="{x + 1}" y="{y + 1}" width="{_CELL_W - 2}" height="{_CELL_H - 2}" rx="2" fill="{colour}"{frame}/>'
    text = ("" if cell.cause is None else f"{cell.failing} of {cell.extensions}") + (" ●" if cell.verified else "")
    if text:
        ink = "#333333" if colour == _NO_CUDA else "#ffffff"
        yield f'<text x="{x + _CELL_W // 2}" y="{y + 14}" text-anchor="middle" fill="{ink}">{text.strip()}</text>'
    yield "</g>"


def _legend(top: int) -> Iterator[str]:
    x = 20
    for colour, text in _LEGEND:
        yield f'<rect x="{x}" y="{top}" width="12" height="12" rx="2" fill="{colour}"/><text x="{x + 16}" y="{top + 10}">{text}</text>'
        x += 36 + 6 * len(text)
    yield f'<text x="20" y="{top + 30}">Frame: the torch that vLLM pins. Number: extensions that would not load. ●: the real loader was asked and said the same.</text>'
