"""One build of target cpu for the whole run of the integration tests, and engines for its images."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from building import LAUNCHER, KilledBuild, build_until_killed_in
from engines import buildah_storage, docker_engine

from envbuilder.images.engines import DockerEngine
from envbuilder.images.oci import Layout as ImageLayout
from envbuilder.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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


@pytest.fixture(scope="session")
def images_cpu(built_cpu: KilledBuild) -> ImageLayout:
    """The images of that build."""
    done = subprocess.run([LAUNCHER, "image", "--out", built_cpu.layout.out], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return ImageLayout(built_cpu.layout.out / "image")


@pytest.fixture(scope="module")
def dockerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    """The process of a Docker engine of our own, which DOCKER_HOST names."""
    with docker_engine(tmp_path_factory.mktemp("dockerd")) as process:
        yield process


@pytest.fixture(scope="module")
def docker(dockerd: object) -> Iterator[DockerEngine]:
    engine = DockerEngine.connect()
    yield engine
    engine.client.close()


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A storage of our own, which buildah uses."""
    with buildah_storage(tmp_path_factory.mktemp("buildah")) as folder:
        yield folder
