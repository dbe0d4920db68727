"""The same bytes everywhere: two builds of one lock have images with the same digests, whatever is different around them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from building import LAUNCHER

from envbuilder.images.oci import Layout
from envbuilder.store.cache import default_root

if TYPE_CHECKING:
    from pathlib import Path

    from building import KilledBuild

pytestmark = [pytest.mark.network, pytest.mark.programs, pytest.mark.timeout(1800)]
DAYS = 400
CLOCK = f"""#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {{
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += {DAYS} * 86400L;
    return failed;
}}
time_t time(time_t *goal) {{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return goal ? *goal = now.tv_sec : now.tv_sec;
}}
int gettimeofday(struct timeval *restrict goal, void *restrict zone) {{
    struct timespec now;
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    goal->tv_sec = now.tv_sec, goal->tv_usec = now.tv_nsec / 1000;
    return failed;
}}
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, str]:
    """Return the variables of another user, another year and another place; the store's wheels and packages are shared, its layers are not."""
    library = tmp_path / "clock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-x", "c", "-o", library, "-"], input=CLOCK, text=True, check=True)
    cache = tmp_path / "another cache"
    cache.mkdir()
    for name in ("files", "uv"):
        (cache / name).symlink_to(default_root() / name)
    odd = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "TZ": "Asia/Kathmandu",
        "SOURCE_DATE_EPOCH": "1",
        "HOME": str(tmp_path),
    }
    return {**os.environ, **odd, "ENVBUILDER_CACHE": str(cache), "LD_PRELOAD": str(library)}


def test_the_clock_of_this_test_is_wrong(elsewhere: dict[str, str]) -> None:
    """Else the next test would prove less than it says."""
    said = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"], env=elsewhere, capture_output=True, text=True, check=True
    )
    assert float(said.stdout) - time.time() == pytest.approx(DAYS * 86400, abs=60)


def test_a_second_build_elsewhere_has_images_of_the_same_digests(
    built_cpu: KilledBuild, images_cpu: Layout, elsewhere: dict[str, str], tmp_path: Path
) -> None:
    """Its own environments and layers, in another folder, in another year, under another umask, locale, time zone and home."""
    out = tmp_path / "a much deeper" / "folder"
    command = [LAUNCHER, "build", "--target", "cpu", "--no-smoke", "--offline", "--out", out]
    done = subprocess.run(command, env=elsewhere, umask=0o077, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr
    second = Layout(out / "image")
    assert (tmp_path / "another cache" / "layers" / "blobs").is_dir(), "it took the layers of the first"
    assert {it.name: it.descriptor.digest for it in second.images()} == {it.name: it.descriptor.digest for it in images_cpu.images()}
    for paper in ("sbom.cdx.json", "provenance.json"):
        assert (out / paper).read_bytes() == (built_cpu.layout.out / paper).read_bytes(), paper
