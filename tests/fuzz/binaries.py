"""Mutate real ELF files, and see that the readers answer each with a result or MalformedElfError: no traceback, no hang, no flood.

    python tests/fuzz/binaries.py [--cases 20000] [--seed 1] [PATH...]

PATH: files, or folders to search for shared objects (an aarch64 environment, say); without one, this machine's own
libraries. Each case changes, cuts or swaps a few bytes, mostly in headers and tables, reads everything there is, and
judges the file with its neighbours' help, which must give a report.
The process may hold 512 MB; a case may take 5 s. Prints the count, the slowest case and the peak of memory.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import resource
import signal
import struct
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from envbuilder.binaries.abi import check_catalog
from envbuilder.binaries.elf import Reference, open_tables, read_elf, read_symbols
from envbuilder.binaries.environment import shared_objects
from envbuilder.binaries.fatbin import read_code_outside, read_gpu_code
from envbuilder.binaries.layout import MalformedElfError, file_offset, read_dynamic, read_header, read_sections, read_segments
from envbuilder.binaries.loader import Catalog
from envbuilder.binaries.lookup import provider_in
from envbuilder.binaries.source import FileSource, OutOfRangeError
from envbuilder.binaries.system import DEBIAN_12

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

    from envbuilder.binaries.elf import Tables
    from envbuilder.binaries.source import ByteSource

_MEMORY = 512 << 20
_SECONDS = 5
_EDGES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
_TABLES = (4, 5, 6, 0x6FFFFEF5, 0x6FFFFFF0, 0x6FFFFFFC, 0x6FFFFFFE)  # hash, strings, symbols, GNU hash, versions


class Mutant:
    """A file with other bytes at some places, or cut; the file itself is not copied."""

    def __init__(self, base: ByteSource, edits: Sequence[tuple[int, bytes]], size: int, path: str) -> None:
        self._base, self._edits, self.size, self.path = base, edits, size, path

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutOfRangeError(f"{length} bytes at {offset} of {self.size}")
        data = bytearray(self._base.read(offset, length))
        for at, new in self._edits:
            start, end = max(at, offset), min(at + len(new), offset + length)
            if start < end:
                data[start - offset : end - offset] = new[start - at : end - at]
        return bytes(data)


def main() -> int:
    """Run all cases; return 1 if one was not answered as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    files = _files(args.paths)
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    signal.signal(signal.SIGALRM, _expire)
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    slowest = 0.0
    for number in range(args.cases):
        dice = random.Random(f"{args.seed}-{number}")
        started = time.perf_counter()
        outcome = _case(dice.choice(files), dice)
        slowest = max(slowest, time.perf_counter() - started)
        outcomes[outcome.partition(":")[0]] += 1
        if outcome.startswith("FAULT"):
            faults.append(f"case {args.seed}-{number}: {outcome}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lines = [f"{args.cases} cases over {len(files)} files: {dict(outcomes)}; slowest {slowest:.2f} s, peak {peak:.0f} MB", *faults[:20]]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if faults else 0


def _files(paths: Sequence[Path]) -> list[str]:
    roots = paths or [Path(sys.prefix), *Path("/usr/lib").glob("*-linux-gnu")]
    found = sorted({path for root in roots for path in ([str(root)] if root.is_file() else shared_objects(root))})
    sound = [path for path in found if _is_sound(path)]
    if not sound:
        raise SystemExit("no sound ELF file in " + ", ".join(map(str, roots)))
    return sound


def _is_sound(path: str) -> bool:
    try:
        with FileSource(path) as source:
            read_elf(source)
    except (MalformedElfError, OSError):
        return False
    return True


def _case(path: str, dice: random.Random) -> str:
    with FileSource(path) as base:
        mutant = _mutate(base, path, dice)
        answers = set()
        for reader in (read_elf, read_symbols, look_up, read_gpu_code, read_code_outside, judge):
            signal.setitimer(signal.ITIMER_REAL, _SECONDS)
            try:
                reader(mutant)
                answers.add("answered")
            except MalformedElfError:
                answers.add("malformed")
            except Exception as error:  # noqa: BLE001 - this is what is looked for
                return f"FAULT: {path}: {reader.__name__}: {type(error).__name__}: {error}"
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    return "malformed" if "malformed" in answers else "answered"


def look_up(source: ByteSource) -> set[str]:
    provider = provider_in(open_tables(source))
    provider.satisfies(Reference("malloc", weak=False, version="GLIBC_2.17", library=None))
    return provider.without({"malloc", "_ZN2at10TensorBase5resetEv", "cudaMalloc", "PyInit__C", ""})


class _MutantCatalog(Catalog):
    """A catalog in which one file has other bytes than on the disk, and its neighbours their own."""

    def __init__(self, mutant: Mutant) -> None:
        super().__init__()
        self._mutant = mutant

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[Tables]:
        if path == self._mutant.path:
            yield open_tables(self._mutant)
        else:
            with super()._opened(path) as tables:
                yield tables


def judge(mutant: Mutant) -> None:
    """Follow what it needs among its neighbours, and judge it as `envbuilder abi FILE` does: that gives a report, and raises nothing."""
    folder = Path(mutant.path).parent
    system = dataclasses.replace(DEBIAN_12, folders=(str(folder),))
    try:
        report = check_catalog(_MutantCatalog(mutant), folder, [mutant.path], torch=None, system=system, asked=True)
    except MalformedElfError as error:
        raise RuntimeError(f"{error} left the check") from error
    json.dumps(report.as_json())


def _mutate(base: ByteSource, path: str, dice: random.Random) -> Mutant:
    size = base.size
    edits: list[tuple[int, bytes]] = []
    places = _places(base)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        start, length = dice.choice(places)
        at = start + dice.randrange(max(1, length))
        edits.append((at, _bytes(dice, size)))
    if dice.random() < 0.15:
        start, length = dice.choice(places)
        size = min(size, dice.choice((dice.randrange(size + 1), start + dice.randrange(length + 1))))
    return Mutant(base, edits, size, path)


def _bytes(dice: random.Random, size: int) -> bytes:
    match dice.randrange(4):
        case 0:
            return dice.randbytes(dice.randrange(1, 17))
        case 1:
            return bytes([1 << dice.randrange(8)])
        case 2:
            value = dice.choice((*_EDGES, size, size - 1, size + 1, size // 2, dice.randrange(size + 1)))
            return struct.pack("<Q", value & 0xFFFFFFFFFFFFFFFF)[: dice.choice((1, 2, 4, 8))]
        case _:
            return dice.choice((b"\0", b"\xff", b"A")) * dice.choice((4, 64, 4096))


def _places(base: ByteSource) -> list[tuple[int, int]]:
    """Where the headers and tables of a sound file lie: (offset, length)."""
    header = read_header(base)
    places = [(0, 64), (header.segments.offset, header.segments.entry_size * header.segments.entries), (0, base.size)]
    segments, dynamic = read_segments(base, header)
    if dynamic is not None:
        places += [(dynamic.offset, dynamic.size)] * 2
        values = read_dynamic(base, dynamic).values
        places += [(file_offset(segments, values[tag]), 4096) for tag in _TABLES if tag in values]
    if header.sections.offset:
        places.append((header.sections.offset, 64 * header.sections.entries))
        places += [(section.offset, 1 << 14) for section in read_sections(base, header) if section.name == ".nv_fatbin"] * 3
    return [(at, length) for at, length in places if length]


def _expire(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"no answer within {_SECONDS} s")


if __name__ == "__main__":
    sys.exit(main())
