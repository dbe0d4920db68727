"""Images over somebody's image from a real registry: locked by digest, fetched layer by layer, its layers ours unchanged."""

from __future__ import annotations

import io
import json
import tomllib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from envbuilder.console import Console
from envbuilder.errors import VerificationError
from envbuilder.files import canonical_json
from envbuilder.images import foundation
from envbuilder.images.layers import LayerStore
from envbuilder.images.oci import INDEX_TYPE, MANIFEST_TYPE, Layout
from envbuilder.images.registry import Reference, Registry
from envbuilder.images.rootfs import User
from envbuilder.images.verify import check_blobs, check_files
from envbuilder.images.write import write_images
from envbuilder.locking.rootfs import ImageLock, image_text, parse_image_lock
from envbuilder.store.rootfs_image import reference_of
from envbuilder.store.settings import Settings
from tests.integration.test_image_registry import NEEDED, Running
from tests.unit.images.small import PACKAGES, deb, small_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envbuilder.images.inputs import Inputs
    from envbuilder.store.rootfs_image import RootfsImage

pytestmark = NEEDED


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    folder = tmp_path / "registry"
    folder.mkdir()
    registry = Running(folder)
    registry.start()
    yield registry
    registry.kill()


def client(reference: str, tmp_path: Path) -> Registry:
    return Registry(reference=Reference.parse(reference), settings=Settings(), state=tmp_path / "uploads")


@pytest.fixture
def published(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The digest of a list with one image, for x86_64, that our own writer made and that has a Python."""
    monkeypatch.setitem(PACKAGES, "python3.11", deb("python3.11", {"usr/bin/python3.11": b"python"}))
    folder = tmp_path / "theirs"
    folder.mkdir()
    layout = Layout(folder / "image")
    console = Console(stream=io.StringIO())
    write_images(small_inputs(folder), layers=LayerStore(folder / "store"), layout=layout, console=console, images=("base",))
    registry = client(f"{running.host}/proxy/library/debian", tmp_path)
    registry.push(layout, {"base": "12"})
    [image] = layout.images()
    row = {**image.descriptor.as_dict(), "platform": {"os": "linux", "architecture": "amd64"}}
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [row]}
    monkeypatch.setenv("ENVBUILDER_IMAGE_REGISTRY", f"{running.host}/proxy")
    return registry.push_manifest(INDEX_TYPE, canonical_json(index))[0].digest


def locked(digest: str, tmp_path: Path) -> RootfsImage:
    """Lock it, and read back what stands in the lock."""
    registry = client(reference_of("library/debian", digest), tmp_path)
    found = foundation.resolve("library/debian", digest, "x86_64", registry)
    lock = ImageLock(intent="0" * 64, compression="zstd", level=3, library="1", packages={}, rootfs={"x86_64": found})
    text = "\n".join(image_text(lock))
    assert "127.0.0.1" not in text
    read = parse_image_lock(tomllib.loads(text)["images"])
    assert read == lock
    return read.rootfs["x86_64"]


def over(rootfs: RootfsImage, tmp_path: Path) -> Inputs:
    paths = [LayerStore(tmp_path / "store").path(layer.digest) for layer in rootfs.layers]
    foundation.fetch(rootfs, paths, lambda: client(reference_of(rootfs.image, rootfs.digest), tmp_path))
    folder = tmp_path / "inputs"
    folder.mkdir(exist_ok=True)
    found = foundation.found(rootfs, paths, python="3.11", user=User(name="envbuilder", uid=1000))
    return replace(small_inputs(folder), packages=(), foundation=found)


def test_its_layers_are_ours_unchanged_and_are_not_sent_again(running: Running, published: str, tmp_path: Path) -> None:
    rootfs = locked(published, tmp_path)
    inputs, layout = over(rootfs, tmp_path), Layout(tmp_path / "image")
    write_images(inputs, layers=LayerStore(tmp_path / "store"), layout=layout, console=Console(stream=io.StringIO()))
    images = {image.name: image for image in layout.images()}
    assert list(images) == ["base", "serve", "quantize"]
    for image in images.values():
        assert [blob.digest for blob in image.layers[: len(rootfs.layers)]] == [layer.digest for layer in rootfs.layers]
        assert check_blobs(layout, image).status == "pass"
        assert check_files(layout, image, inputs, image.labels["envbuilder.image"], {}).status == "pass"  # type: ignore[arg-type]
    registry = client(f"{running.host}/proxy/library/debian", tmp_path)
    registry.push(layout, {"serve": "serve"})
    theirs = sum(layer.size for layer in rootfs.layers)
    assert 0 < registry.sent_bytes <= sum(blob.size for blob in images["serve"].blobs) - theirs


def test_a_layer_that_was_changed_in_the_registry_is_refused(running: Running, published: str, tmp_path: Path) -> None:
    rootfs = locked(published, tmp_path)
    value = rootfs.layers[0].digest.removeprefix("sha256:")
    path = running.folder / f"data/docker/registry/v2/blobs/sha256/{value[:2]}/{value}/data"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(VerificationError, match="is not what the registry sent"):
        over(rootfs, tmp_path)


def test_a_layer_that_was_changed_in_the_store_is_fetched_anew(published: str, tmp_path: Path) -> None:
    """The digest counts, not the name of the file: somebody else may have written there."""
    rootfs = locked(published, tmp_path)
    goal = LayerStore(tmp_path / "store").path(rootfs.layers[0].digest)
    goal.parent.mkdir(parents=True)
    goal.write_bytes(b"\0" * rootfs.layers[0].size)
    over(rootfs, tmp_path)
    assert goal.read_bytes() != b"\0" * rootfs.layers[0].size


def test_another_manifest_under_that_digest_is_refused(running: Running, published: str, tmp_path: Path) -> None:
    value = published.removeprefix("sha256:")
    path = running.folder / f"data/docker/registry/v2/blobs/sha256/{value[:2]}/{value}/data"
    document = json.loads(path.read_bytes())
    path.write_bytes(canonical_json({**document, "manifests": [{**document["manifests"][0], "mediaType": MANIFEST_TYPE, "size": 1}]}))
    with pytest.raises(VerificationError, match="is not what its digest says"):
        locked(published, tmp_path)
