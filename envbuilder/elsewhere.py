"""Work in a forked child: it runs on another core, and what crashes or hangs there costs its answer, and no more.

A fork has all that is imported already; a fresh interpreter would spend more time on its start than on the work.
"""

from __future__ import annotations

import itertools
import marshal
import os
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, NoReturn, TypeVar

    _Item = TypeVar("_Item")
    _Result = TypeVar("_Result")

_PIECE = 1 << 20
_MOST_TICKETS = 4096  # a pipe takes at least so many bytes at once


def start(work: Callable[[], Any], *, limit_s: int) -> Callable[[], Any]:
    """Start `work` in a child that lives no longer than `limit_s`; return a function that waits for its result.

    The result is plain data: what `marshal` can carry. A process with several threads is not forked, for one of them
    may hold a lock that nobody in the child would ever release: there the work is done by whoever asks for its result.
    """
    try:
        if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208 - names
            return work
    except OSError:  # no /proc, in some sandboxes: how many threads there are is not to be known
        return work
    receiving, sending = os.pipe()
    try:
        child = os.fork()
    except OSError:  # a limit on processes
        os.close(receiving)
        os.close(sending)
        return work
    if child == 0:
        os.close(receiving)
        _work(work, sending, limit_s)
    os.close(sending)
    return partial(_result, child, receiving)


def divided(function: Callable[[_Item], _Result], items: Sequence[_Item], *, limit_s: int) -> list[_Result]:
    """Apply a function to every item, in order; a child begins at the other end, and both go on until they meet.

    What lies side by side often needs the same files: only one of the two reads them then. A pipe of tickets says how
    many pieces are left. Results are what `pickle` can carry; `limit_s` is the child's.
    """
    import pickle  # noqa: PLC0415 - who divides nothing needs none

    length = 1 + len(items) // _MOST_TICKETS
    pieces = [items[start : start + length] for start in range(0, len(items), length)]
    receiving, sending = os.pipe()
    os.write(sending, bytes(len(pieces)))
    os.close(sending)
    with os.fdopen(receiving, "rb", buffering=0) as tickets:

        def done(pieces: Iterable[Sequence[_Item]]) -> list[list[_Result]]:
            return [list(map(function, piece)) for piece in itertools.takewhile(lambda _: tickets.read(1), pieces)]

        rest = start(lambda: pickle.dumps(done(reversed(pieces))), limit_s=limit_s)
        mine = done(pieces)
        theirs: list[list[_Result]] = pickle.loads(rest())  # noqa: S301 - from our own child
    return [one for piece in (*mine, *reversed(theirs)) for one in piece]


def _work(work: Callable[[], Any], sending: int, limit_s: int) -> NoReturn:
    """In the child: do it, send the result or what went wrong, and end without any of the parent's last words."""
    try:
        import signal  # noqa: PLC0415 - in the child, on the other core

        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(limit_s)
        try:
            answer = (True, work())
        except Exception as error:  # noqa: BLE001 - whatever it was, the parent says it
            answer = (False, f"{type(error).__name__}: {error}")
        with os.fdopen(sending, "wb") as pipe:
            pipe.write(marshal.dumps(answer))
    finally:
        os._exit(0)


def _result(child: int, receiving: int) -> Any:  # noqa: ANN401 - what the work returned
    pieces = []
    with os.fdopen(receiving, "rb", buffering=0) as pipe:
        while piece := pipe.read(_PIECE):
            pieces.append(piece)
    _, status = os.waitpid(child, 0)
    if not pieces:
        raise ChildProcessError(f"the child ended without an answer, by {os.waitstatus_to_exitcode(status)}")
    well, answer = marshal.loads(b"".join(pieces))  # noqa: S302 - from our own child
    if not well:
        raise ChildProcessError(answer)
    return answer
