"""Work in a forked child: its answer, its failure, its death and its hanging all come back, in time.

pytest-xdist's workers have threads, and such a process is not forked: these run in an interpreter of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from envbuilder import elsewhere

ROOT = Path(__file__).parents[2]
START = "import os, signal, sys, time; sys.path.insert(0, sys.argv[1]); from envbuilder.elsewhere import start\n"


def alone(code: str) -> str:
    done = subprocess.run([sys.executable, "-I", "-c", START + code, ROOT], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return done.stdout.strip()


def test_the_work_is_done_in_another_process_and_its_result_is_whole() -> None:
    assert alone(
        "found = start(lambda: (os.getpid(), ['ü' * 100_000, None]), limit_s=30)(); print(found[0] != os.getpid(), found[1] == ['ü' * 100_000, None])"
    ) == ("True True")


def test_what_goes_wrong_there_is_said_here() -> None:
    code = "try: start(lambda: 1 / 0, limit_s=30)()\nexcept ChildProcessError as error: print(error)"
    assert alone(code) == "ZeroDivisionError: division by zero"


def test_a_child_that_dies_is_a_failure_and_not_silence() -> None:
    code = "try: start(lambda: os.kill(os.getpid(), signal.SIGKILL), limit_s=30)()\nexcept ChildProcessError as error: print(error)"
    assert alone(code) == "the child ended without an answer, by -9"


def test_a_child_that_hangs_ends_in_time_and_leaves_no_process() -> None:
    code = "try: start(lambda: time.sleep(50), limit_s=1)()\nexcept ChildProcessError as error: print(error)\ntry: os.wait()\nexcept ChildProcessError: print('none left')"
    assert alone(code) == "the child ended without an answer, by -14\nnone left"


def test_what_the_parent_has_not_yet_printed_is_not_printed_twice() -> None:
    assert alone("print('once'); start(lambda: 1, limit_s=30)()") == "once"


def test_a_process_with_threads_is_not_forked() -> None:
    """A lock that another thread holds at that moment would never be released in the child."""
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    found = elsewhere.start(os.getpid, limit_s=30)()
    release.set()
    thread.join()
    assert found == os.getpid()


def test_divided_work_is_done_once_each_and_told_in_order() -> None:
    """Both processes take from one pile: what both did, or neither, would be a file judged twice, or not at all."""
    code = """
from envbuilder.elsewhere import divided
for count in (0, 1, 7, 500, 9000):
    found = divided(lambda item: (item, os.getpid(), time.sleep(0.001 if count == 500 else 0)), range(count), limit_s=30)
    assert [item for item, *_ in found] == list(range(count)), count
    if count == 500: print(len({process for _, process, _ in found}))
"""
    assert alone(code) == "2"


def test_divided_work_of_which_a_piece_fails_fails() -> None:
    code = """
from envbuilder.elsewhere import divided
for bad in (0, 499):
    try: divided(lambda item: time.sleep(0.001) or 1 / (item != bad), range(500), limit_s=30)
    except (ChildProcessError, ZeroDivisionError) as error: print('told')
"""
    assert alone(code) == "told\ntold"


def test_a_process_with_threads_does_all_of_it_itself() -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    found = elsewhere.divided(lambda item: (item, os.getpid()), range(100), limit_s=30)
    release.set()
    thread.join()
    assert found == [(item, os.getpid()) for item in range(100)]
