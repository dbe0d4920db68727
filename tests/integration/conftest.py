"""One build of target cpu for the whole run of the integration tests."""

from __future__ import annotations

import os
import subprocess

import pytest
from building import LAUNCHER, KilledBuild, build_until_killed_in

from envbuilder.layout import Layout


@pytest.fixture(scope="session")
def built_cpu(tmp_path_factory: pytest.TempPathFactory) -> KilledBuild:
    """Build target cpu into a fresh folder. ENVBUILDER_TEST_OUT names a finished build to use in its place, while developing."""
    if given := os.environ.get("ENVBUILDER_TEST_OUT"):
        return KilledBuild(layout=Layout.of(given), killed_in=(), last_stdout="", last_stderr="")
    layout = Layout.of(tmp_path_factory.mktemp("built") / "cpu out")  # a space, as in many a home
    killed = []
    for stage in ("assemble-serve", "assemble-quantize", "quantize", "serve"):
        build_until_killed_in(layout, stage)
        killed.append(stage)
    done = subprocess.run(
        [LAUNCHER, "build", "--target", "cpu", "--no-image", "--out", layout.out], capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr
    return KilledBuild(layout=layout, killed_in=tuple(killed), last_stdout=done.stdout, last_stderr=done.stderr)
