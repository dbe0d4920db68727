"""Container engines from Debian's packages, started by hand: they take our images, and make the same ones from Dockerfiles."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from engines import buildah_root
from image_trees import of_docker, of_folder, seen

from envbuilder.console import Console
from envbuilder.images.engines import DockerEngine, EngineError, build_with
from envbuilder.images.layers import LayerStore, tar_header
from envbuilder.images.oci import Layout
from envbuilder.images.recipe import layers_of
from envbuilder.images.write import write_images
from tests.unit.images.small import small_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from image_trees import Files

    from envbuilder.images.inputs import Inputs

pytestmark = [
    pytest.mark.programs,
    pytest.mark.enable_socket,
    pytest.mark.timeout(600),
    # docker's SDK leaves sockets to the garbage collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
ROOT = os.geteuid() == 0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Inputs, Layout]:
    folder = tmp_path_factory.mktemp("small")
    inputs = small_inputs(folder)
    layout = Layout(folder / "image")
    write_images(inputs, layers=LayerStore(folder / "store"), layout=layout, console=Console(stream=io.StringIO()))
    return inputs, layout


def expected(inputs: Inputs, name: str) -> Files:
    """Return what an image's files must look like, from what they are made of."""
    found: Files = {}
    for layer in layers_of(name, inputs):  # type: ignore[arg-type]
        with contextlib.ExitStack() as stack:
            for entry in layer.make(stack).values():
                with entry.open() as content:
                    found[entry.path] = seen(tar_header(entry), content)
    return found


def test_docker_takes_our_images_and_calls_them_by_our_digests(small: tuple[Inputs, Layout], dockerd: object) -> None:
    """All four in one archive, with what they share in it once."""
    inputs, layout = small
    engine = DockerEngine.connect()
    loaded = engine.load(layout, {f"test:{image.name}": image for image in layout.images()})
    assert loaded == {f"test:{image.name}": image.manifest["config"]["digest"] for image in layout.images()}
    for image in layout.images():
        held = engine.client.images.get(f"test:{image.name}")
        assert held.attrs["Config"]["User"] == "envbuilder"
        assert held.labels["envbuilder.lock"] == f"sha256:{inputs.lock}"
        assert of_docker(engine, f"test:{image.name}") == expected(inputs, image.name)
    engine.client.close()


@pytest.mark.parametrize("name", ["base", "dev"])
def test_docker_builds_the_same_files(small: tuple[Inputs, Layout], dockerd: object, name: str, tmp_path: Path) -> None:
    """The Dockerfiles are for people who extend them; they must not have drifted from what envbuilder writes itself."""
    inputs, layout = small
    image = next(image for image in layout.images() if image.name == name)
    build_with("docker", layout, image, f"built:{name}", scratch=tmp_path / "context", log=tmp_path / "log")
    engine = DockerEngine.connect()
    assert of_docker(engine, f"built:{name}") == expected(inputs, name)
    config = engine.client.images.get(f"built:{name}").attrs["Config"]
    for key in ("User", "WorkingDir", "Entrypoint", "Cmd", "Labels"):
        assert config[key] == image.config["config"].get(key)
    assert sorted(config["Env"]) == sorted(image.config["config"]["Env"])
    engine.client.close()


@pytest.mark.parametrize("name", ["serve"])
def test_buildah_builds_the_same_files(small: tuple[Inputs, Layout], buildah: Path, name: str, tmp_path: Path) -> None:
    inputs, layout = small
    image = next(image for image in layout.images() if image.name == name)
    build_with("buildah", layout, image, "localhost/built:serve", scratch=tmp_path / "context", log=tmp_path / "log")
    assert of_folder(buildah_root("localhost/built:serve")) == expected(inputs, name)
    held = json.loads(
        subprocess.run(["buildah", "inspect", "--type", "image", "localhost/built:serve"], check=True, capture_output=True).stdout
    )
    config = held["OCIv1"]["config"]
    assert config["User"] == "envbuilder"
    assert config["Entrypoint"] == image.config["config"]["Entrypoint"]


def test_no_engine_is_said_and_none_is_needed(small: tuple[Inputs, Layout], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, layout = small
    image = layout.images()[0]
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody")
    with pytest.raises(EngineError, match="no Docker engine answers"):
        DockerEngine.connect()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="buildah is not installed"):
        build_with("buildah", layout, image, "x", scratch=tmp_path / "context", log=tmp_path / "log")


def test_an_engine_that_stops_halfway_is_an_error(small: tuple[Inputs, Layout], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that dies in the middle: no image, no context left behind, and its last words in the message."""
    _, layout = small
    fake = tmp_path / "bin/buildah"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho pulling the rug; kill -9 $$\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    with pytest.raises(EngineError) as caught:
        build_with("buildah", layout, layout.images()[0], "x", scratch=tmp_path / "context", log=tmp_path / "log")
    assert "SIGKILL" in caught.value.what
    assert "pulling the rug" in caught.value.why
    assert not (tmp_path / "context").exists()


def test_an_engine_that_is_killed_while_loading_is_an_error(small: tuple[Inputs, Layout], dockerd: subprocess.Popen[bytes]) -> None:
    """Last in this file: the engine is gone afterwards."""
    _, layout = small
    engine = DockerEngine.connect()
    dockerd.kill()
    dockerd.wait()
    with pytest.raises(EngineError, match="did not take"):
        engine.load(layout, {"test:late": layout.images()[0]})
    engine.client.close()


@pytest.mark.skipif(not ROOT, reason="a small disk is mounted, which needs root")
def test_a_full_disk_is_said_and_a_second_run_goes_on(tmp_path: Path) -> None:
    from envbuilder.errors import StorageError  # noqa: PLC0415

    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        inputs = small_inputs(tmp_path)
        with pytest.raises(StorageError, match="the disk is full"):
            write_images(inputs, layers=LayerStore(mount / "store"), layout=Layout(mount / "image"), console=Console(stream=io.StringIO()))
        assert not list(mount.glob("store/layers/blobs/.*")), "a half-written layer was left on a full disk"
        subprocess.run(["mount", "-o", "remount,size=8m", str(mount)], check=True)
        write_images(inputs, layers=LayerStore(mount / "store"), layout=Layout(mount / "image"), console=Console(stream=io.StringIO()))
    finally:
        subprocess.run(["umount", str(mount)], check=True)
