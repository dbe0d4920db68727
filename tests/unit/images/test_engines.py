"""What engines are given is whole, and what went wrong on our side is not told as the engine's fault."""

from __future__ import annotations

import io
import json
import tarfile
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any

import docker
import pytest

from envbuilder.errors import StorageError, VerificationError
from envbuilder.images import engines
from envbuilder.images.engines import DockerEngine, EngineError, build_with
from envbuilder.images.layers import LayerStore
from envbuilder.images.oci import Layout
from envbuilder.images.write import write_images

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from envbuilder.console import Console
    from envbuilder.images.inputs import Inputs
    from envbuilder.images.oci import Image


@pytest.fixture
def layout(make_inputs: Callable[..., Inputs], tmp_path: Path, console: Console) -> Layout:
    layout = Layout(tmp_path / "image")
    write_images(make_inputs(), layers=LayerStore(tmp_path / "store"), layout=layout, console=console)
    return layout


class Engine:
    """Takes an archive as Docker does, in place of it; `dies` after that."""

    def __init__(self, *, dies: bool = False) -> None:
        self.dies, self.archive = dies, b""

    def load(self, archive: IO[bytes]) -> None:
        self.archive = archive.read()
        try:
            with tarfile.open(fileobj=io.BytesIO(self.archive)) as tar:
                tar.extractfile("manifest.json")
        except (tarfile.TarError, KeyError) as error:
            raise docker.errors.APIError("unexpected EOF") from error

    def get(self, tag: str) -> Any:
        if self.dies:
            raise docker.errors.APIError("connection refused")
        return SimpleNamespace(id=f"id of {tag}")


def engine_of(images: Engine) -> DockerEngine:
    client: Any = SimpleNamespace(images=images)
    return DockerEngine(client=client)


def tagged(layout: Layout) -> Mapping[str, Image]:
    return {f"test:{image.name}": image for image in layout.images()}


def damage(layout: Layout, how: str) -> None:
    """Take a layer away, or half of it; its other name in the store keeps the whole."""
    path = layout.blob(max(layout.images()[0].layers, key=lambda blob: blob.size).digest)
    content = path.read_bytes()
    path.unlink()
    if how == "half":
        path.write_bytes(content[: len(content) // 2])


def test_what_images_share_is_sent_once(layout: Layout) -> None:
    """Four images of 3 GB have one root filesystem and one torch: each layer was sent, and unpacked twice, for each of them."""
    images = Engine()
    assert engine_of(images).load(layout, tagged(layout)) == {tag: f"id of {tag}" for tag in tagged(layout)}
    with tarfile.open(fileobj=io.BytesIO(images.archive)) as tar:
        names = tar.getnames()
        listed = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert len(names) == len(set(names))
    assert {row["RepoTags"][0] for row in listed} == set(tagged(layout))
    assert {name for row in listed for name in (row["Config"], *row["Layers"])} | {"manifest.json"} == set(names)


@pytest.mark.parametrize(("how", "fault"), [("missing", "is missing"), ("half", "in place of")])
def test_a_damaged_layer_goes_to_no_engine(layout: Layout, tmp_path: Path, how: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine makes an image of half a layer without a word, or says that its own disk may be full."""
    program = tmp_path / "bin/buildah"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nwhile [ "$1" ]; do [ "$1" = --iidfile ] && echo made > "$2"; shift; done\n')
    program.chmod(0o755)
    images = layout.images()
    damage(layout, how)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    with pytest.raises(VerificationError, match=fault):
        engine_of(Engine()).load(layout, {"test:base": images[0]})
    with pytest.raises(VerificationError, match=fault):
        build_with("buildah", layout, images[0], "x", scratch=tmp_path / "context", log=tmp_path / "log")


def test_what_went_wrong_here_is_told_before_what_the_engine_made_of_it(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that vanishes while it is sent: to the engine, the archive has ended early."""
    real = engines.write_docker_archive

    def write(layout: Layout, images: Mapping[str, Image], goal: IO[bytes]) -> None:
        damage(layout, "missing")
        real(layout, images, goal)

    monkeypatch.setattr(engines, "write_docker_archive", write)
    with pytest.raises(StorageError, match="has vanished while it was used"):
        engine_of(Engine()).load(layout, tagged(layout))


def test_an_engine_that_dies_after_it_took_an_image_is_an_error(layout: Layout) -> None:
    """Docker's own exception would pass for a fault of envbuilder."""
    with pytest.raises(EngineError, match="did not take test:base"):
        engine_of(Engine(dies=True)).load(layout, tagged(layout))
