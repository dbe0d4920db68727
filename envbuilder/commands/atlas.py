"""Make the atlas anew from the package index: what torch defines and vLLM needs.

The atlas is the file that `envbuilder abi WHEEL --torch VERSION` asks offline. This
reads torch's and vLLM's wheels by HTTP range requests, only the libraries that
matter, and keeps what it learned of each wheel: interrupted, it goes on from there.

  envbuilder atlas update            read what is new, write the file
  envbuilder atlas show              the grid of releases, as a table
  envbuilder atlas picture FILE.svg  the grid as a picture
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from envbuilder.console import Console

_OLDEST = {"torch": "2.9", "vllm": "0.18"}


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", help="what to do with it")
    update = actions.add_parser("update", help="read what is new on the index, and write the atlas")
    update.add_argument("--work", type=Path, help="where facts of single wheels are kept (default: in envbuilder's cache)")
    update.add_argument("--out", type=Path, help="the file to write (default: the one in this checkout)")
    update.add_argument(
        "--verified",
        metavar="WHEEL=TORCH",
        action="append",
        default=[],
        help="a pair that the real loader judged the same: a file name, a build",
    )
    show = actions.add_parser("show", help="print the grid of releases")
    show.add_argument("--machine", default="aarch64", help="aarch64 (default) or x86_64")
    picture = actions.add_parser("picture", help="draw the grid")
    picture.add_argument("out", type=Path, metavar="FILE.svg")


def run(args: argparse.Namespace, console: Console) -> int:
    match args.action:
        case "update":
            _update(args, console)
        case "show":
            _show(args.machine, console)
        case _:
            from envbuilder.binaries.atlas import load
            from envbuilder.binaries.atlas_svg import draw
            from envbuilder.files import write_atomic

            write_atomic(args.out, draw(load()))
            console.line(f"wrote {args.out}")
    return 0


def _update(args: argparse.Namespace, console: Console) -> None:
    import datetime as dt

    from envbuilder.binaries import atlas, atlas_update
    from envbuilder.files import canonical_json, human_size, write_atomic
    from envbuilder.store.cache import default_root
    from envbuilder.store.fetch import new_session
    from envbuilder.store.settings import read_settings

    settings = read_settings()
    work = args.work or default_root() / "atlas"
    out = args.out or Path(atlas.__file__).parent / "data" / "atlas.json"
    session = new_session(settings)
    wanted = atlas_update.find_wheels(session, [place.location for place in settings.all_indexes], oldest=_OLDEST)
    facts = atlas_update.read_all(wanted, session, work=work, console=console)
    made = dt.datetime.now(tz=dt.UTC).date().isoformat()
    pairs = [atlas.Verified(wheel=wheel, torch=torch) for wheel, _, torch in (text.partition("=") for text in args.verified)]
    known = tuple(dict.fromkeys((*atlas_update.verified_of(out), *pairs)))
    data = canonical_json(atlas.build(facts, made=made, verified=known).as_json())
    write_atomic(out, data.replace(b'},{"', b'},\n{"').replace(b'","', b'",\n"') + b"\n")
    console.line(f"wrote {out}: {len(facts)} wheels, {human_size(out.stat().st_size)}")


def _show(machine: str, console: Console) -> None:
    from envbuilder.binaries.atlas import load
    from envbuilder.binaries.atlas_grid import grid

    table = grid(load(), machine)
    names = [name.partition("+")[0].removesuffix(".0") for name in table.torch]
    width = max(map(len, names), default=0) + 2
    lines = [f"vLLM    pins    {''.join(f'{name:>{width}}' for name in names)}"]
    lines += [f"{row.vllm:<8}{row.pinned or '':<8}{''.join(f'{cell.short:>{width}}' for cell in row.cells)}" for row in table.rows]
    print("\n".join(lines))  # noqa: T201
    console.line("✓ loads; c: this torch has no CUDA; v: built for another torch; m: for another CUDA;")
    console.line("*: the real loader said so too")
