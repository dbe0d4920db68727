"""The kernel log of this boot, the lines that matter, from the first source that this user may read."""

from __future__ import annotations

import contextlib
import os
import re

from envbuilder.errors import ProgramError
from envbuilder.facts import redact
from envbuilder.facts.model import KernelLog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envbuilder.facts.world import World

# Plain text is looked for ten times faster than by a pattern, and a log has thousands of lines.
_WANTED = (
    *("NVRM", "Xid", "nvidia", "oom-kill", "Out of memory", "Killed process", "DOE", "mlx5", "PM: suspend", "GSP", "EXT4-fs error"),
    *("I/O error", "module verification", "unsigned module", "Lockdown:", "AER:", "soft lockup", "blocked for more than", "nouveau"),
    "thermal",
)
_WORDS = r"\b(?:Xid|DOE)\b"  # wanted as words only
_PREFIX = r"^(?:<\d+>)?(?:\S+\s+\d+\s[\d:]+\s\S+\s|\d{4}-\S+\s\S+\s)?(?:kernel:\s*)?(?:\[\s*\d+\.\d+\]\s*)?"
_RING = "/dev/kmsg"
_TAIL_BYTES = 4 << 20
_MOST_LINES = 300
_JOURNAL_LIMIT_S = 1.5


def read_kernel_log(world: World) -> KernelLog | None:
    """Return what concerns GPU, memory and disks; None if no source may be read (that is usual without the group adm)."""
    for source, lines in _sources(world):
        # A command line may hold anything, secrets included, and its options name drivers that say nothing.
        bare = (lambda line: line) if source == _RING else _bare
        kept = [redact.said(bare(line).rstrip())[:300] for line in lines if _wanted(line) and "ommand line:" not in line]
        return KernelLog(source=source, lines=tuple(kept[-_MOST_LINES:]))
    return None


def _wanted(line: str) -> bool:
    found = [text for text in _WANTED if text in line]
    return bool(found) and (not {"Xid", "DOE"}.issuperset(found) or re.search(_WORDS, line) is not None)


def _bare(line: str) -> str:
    """Take off what syslog, dmesg or the journal put before a message: priority, time, machine."""
    return re.sub(_PREFIX, "", line, count=1)


def _sources(world: World) -> Iterator[tuple[str, Iterable[str]]]:
    if world.live and (records := _ring()):
        yield _RING, records
    for path in ("/var/log/kern.log", "/var/log/dmesg"):
        if text := world.tail(path, _TAIL_BYTES):
            yield path, _this_boot(text)
    if world.live and world.which("journalctl") and (text := _journal()):
        yield "journalctl -k -b", text.splitlines()


def _this_boot(text: str) -> list[str]:
    lines = text.splitlines()
    start = max((index for index, line in enumerate(lines) if "] Linux version " in line or "kernel: Linux version " in line), default=0)
    return lines[start:]


def _ring() -> list[str]:
    """Read the messages of the kernel's ring buffer, one record a read ("6,339,5140900,-;text"); [] where that is not permitted."""
    records: list[str] = []
    try:
        handle = os.open(_RING, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    with contextlib.suppress(OSError):
        while True:
            try:
                record = os.read(handle, 8192)
            except BrokenPipeError:  # a record was overwritten while we read: go on with the next
                continue
            records.append(record.partition(b"\n")[0].partition(b";")[2].decode(errors="replace"))
    os.close(handle)
    return records


def _journal() -> str:
    from envbuilder.process import run  # noqa: PLC0415 - only where the files do not tell

    with contextlib.suppress(ProgramError):
        command = ["journalctl", "--dmesg", "--boot", "--quiet", "--no-pager", "--output=cat", "--lines=5000"]
        return run(command, timeout_s=_JOURNAL_LIMIT_S, capture=True).stdout
    return ""
