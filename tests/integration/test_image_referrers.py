"""Papers attached to images in a real registry, one that knows no referrers: docker-registry 2.8."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from typing import TYPE_CHECKING

import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from envbuilder.build.verification import Verifier
from envbuilder.console import Console
from envbuilder.errors import VerificationError
from envbuilder.images.fleet import tags_of, take
from envbuilder.images.inputs import IMAGES
from envbuilder.images.layers import LayerStore
from envbuilder.images.oci import Layout
from envbuilder.images.provenance import signed, statement
from envbuilder.images.referrers import ENVELOPE, SBOM, Paper, attach, attached
from envbuilder.images.registry import Reference, Registry
from envbuilder.images.verify import own_files
from envbuilder.images.write import write_images
from envbuilder.store.cache import Store
from envbuilder.store.settings import Settings
from tests.integration.test_image_registry import NEEDED, Running
from tests.unit.images.small import small_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envbuilder.images.oci import Image

pytestmark = NEEDED


class Pushed:
    """The small images in a registry, each with its bill of materials and a signed provenance."""

    def __init__(self, folder: Path, host: str) -> None:
        self.host, self.folder = host, folder
        (folder / "inputs").mkdir()
        inputs = small_inputs(folder / "inputs")
        self.layout = Layout(folder / "image")
        write_images(inputs, layers=LayerStore(folder / "store"), layout=self.layout, console=Console(stream=io.StringIO()))
        self.registry = Registry(reference=Reference.parse(f"{host}/team/vllm"), settings=Settings(), state=folder / "uploads")
        self.registry.push(self.layout, tags_of(self.registry.reference, "1", IMAGES))
        images = self.layout.images()
        subjects = {f"image/{image.name}": image.descriptor.digest.removeprefix("sha256:") for image in images}
        subjects |= {f"sbom/{image.name}": hashlib.sha256(self.bill(image)).hexdigest() for image in images}
        self.statement = statement(inputs, subjects)
        envelope = json.dumps(signed(self.statement, self._key())).encode()
        for image in images:
            attach(self.registry, image.descriptor, Paper(kind=SBOM, name="sbom.cdx.json", content=self.bill(image)))
            attach(self.registry, image.descriptor, Paper(kind=ENVELOPE, name="provenance.dsse.json", content=envelope))

    def bill(self, image: Image) -> bytes:
        return own_files(self.layout, image)["sbom.cdx.json"]

    def _key(self) -> Path:
        key = Ed25519PrivateKey.generate()
        pem, public = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        (self.folder / "key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        (self.folder / "key.pub").write_bytes(key.public_key().public_bytes(pem, public))
        return self.folder / "key"

    def verify(self, image: str) -> dict[str, str]:
        verifier = Verifier(store=Store(self.folder / "cache"), settings=Settings(), console=Console(stream=io.StringIO()))
        [verified] = verifier.verify(f"{self.host}/team/vllm:1-{image}", key=self.folder / "key.pub")
        return {check.name: check.status for check in verified.checks}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    folder = tmp_path / "registry"
    folder.mkdir()
    registry = Running(folder)
    registry.start()
    yield registry
    registry.kill()


@pytest.fixture
def pushed(running: Running, tmp_path: Path) -> Pushed:
    return Pushed(tmp_path, running.host)


def test_papers_are_found_under_the_digest_s_tag(pushed: Pushed) -> None:
    """By other tools too: the list is an OCI index under `sha256-<digest>`."""
    image = pushed.layout.images()[0]
    assert sorted(paper.kind for paper in attached(pushed.registry, image.descriptor)) == [SBOM, ENVELOPE]
    tag = image.descriptor.digest.replace(":", "-")
    index = requests.get(
        f"http://{pushed.host}/v2/team/vllm/manifests/{tag}", headers={"Accept": "application/vnd.oci.image.index.v1+json"}, timeout=5
    ).json()
    assert [row["artifactType"] for row in index["manifests"]] == [SBOM, ENVELOPE]
    before = pushed.registry.sent_bytes
    attach(pushed.registry, image.descriptor, Paper(kind=SBOM, name="sbom.cdx.json", content=pushed.bill(image)))
    assert pushed.registry.sent_bytes == before


@pytest.mark.parametrize("image", ["base", "serve"])
def test_verify_of_a_pushed_image_reads_them(pushed: Pushed, image: str) -> None:
    found = pushed.verify(image)
    assert {name: found[name] for name in ("digests", "sbom", "provenance", "signature")} == {
        "digests": "pass",
        "sbom": "pass",
        "provenance": "pass",
        "signature": "pass",
    }


def test_another_key_signed_it(pushed: Pushed) -> None:
    """--key on an image in a registry must not be passed over."""
    pushed._key()
    assert pushed.verify("serve")["signature"] == "fail"


def test_a_paper_that_was_changed_in_the_registry_is_refused(pushed: Pushed, running: Running) -> None:
    value = hashlib.sha256(pushed.bill(pushed.layout.images()[1])).hexdigest()
    path = running.folder / f"data/docker/registry/v2/blobs/sha256/{value[:2]}/{value}/data"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"CycloneDX", b"cycloneDX"))
    with pytest.raises(VerificationError, match="is not what the registry sent"):
        pushed.verify("serve")


def test_who_takes_the_images_gets_their_provenance(pushed: Pushed, tmp_path: Path) -> None:
    taken = take(f"{pushed.host}/team/vllm", "1", "0" * 64, Layout(tmp_path / "other"), settings=Settings(), state=tmp_path / "uploads")
    [envelope] = [paper for paper in taken.papers if paper.kind == ENVELOPE]
    assert json.loads(base64.b64decode(json.loads(envelope.content)["payload"])) == pushed.statement


def test_images_that_were_made_otherwise_are_not_taken(pushed: Pushed, tmp_path: Path) -> None:
    """One lock, two ways to vLLM: a compiled one must not come where the published one is built. No heavy layer is fetched for it."""
    seen: list[str] = []
    layout = Layout(tmp_path / "other")

    def ours(files: object) -> bool:
        assert isinstance(files, dict)
        seen.append(json.loads(files["image.json"])["image"])
        return False

    taken = take(f"{pushed.host}/team/vllm", "1", "0" * 64, layout, settings=Settings(), state=tmp_path / "uploads", ours=ours)
    assert (taken.images, seen) == ((), ["base"])
    assert len(list((layout.root / "blobs/sha256").iterdir())) == 3
