"""Papers attached to images: found again by the image's digest, on registries of both kinds, and believed only if they are right."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from envbuilder.build.verification import Verifier
from envbuilder.errors import VerificationError
from envbuilder.images.layers import LayerStore
from envbuilder.images.oci import MANIFEST_TYPE, Descriptor, Layout
from envbuilder.images.provenance import fault, signed, statement
from envbuilder.images.referrers import ENVELOPE, SBOM, STATEMENT, Paper, attach, attached
from envbuilder.images.verify import own_files
from envbuilder.images.write import write_images
from envbuilder.store.cache import Store
from envbuilder.store.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from envbuilder.console import Console
    from envbuilder.images.inputs import Inputs
    from envbuilder.images.oci import Image

LOCK = f"sha256:{'0' * 64}"


class Memory:
    """What a registry does with manifests and blobs, in memory; `modern`: it knows referrers."""

    def __init__(self, *, modern: bool) -> None:
        self.modern = modern
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}

    def push_bytes(self, media_type: str, payload: bytes) -> Descriptor:
        digest = f"sha256:{hashlib.sha256(payload).hexdigest()}"
        self.blobs[digest] = payload
        return Descriptor(media_type=media_type, digest=digest, size=len(payload))

    def push_manifest(self, media_type: str, payload: bytes, *, tag: str = "") -> tuple[Descriptor, bool]:
        digest = f"sha256:{hashlib.sha256(payload).hexdigest()}"
        self.manifests |= {digest: payload, **({tag: payload} if tag else {})}
        return Descriptor(media_type=media_type, digest=digest, size=len(payload)), self.modern and "subject" in json.loads(payload)

    def referrers(self, digest: str) -> bytes | None:
        if not self.modern:
            return None
        documents = {name: json.loads(payload) for name, payload in self.manifests.items()}
        rows = [
            {"digest": name, "artifactType": it["artifactType"]}
            for name, it in documents.items()
            if it.get("subject", {}).get("digest") == digest
        ]
        return json.dumps({"manifests": rows}).encode()

    def manifest(self, name: str) -> tuple[Descriptor, bytes] | None:
        payload = self.manifests.get(name)
        return (Descriptor(media_type=MANIFEST_TYPE, digest=name, size=len(payload)), payload) if payload else None

    def blob(self, blob: Descriptor) -> bytes:
        return self.blobs[blob.digest]


@pytest.fixture(params=[True, False], ids=["referrers", "tag"])
def registry(request: pytest.FixtureRequest) -> Any:
    return Memory(modern=request.param)


SUBJECT = Descriptor(media_type=MANIFEST_TYPE, digest=f"sha256:{'a' * 64}", size=7)
OTHER = Descriptor(media_type=MANIFEST_TYPE, digest=f"sha256:{'b' * 64}", size=7)
BILL = Paper(kind=SBOM, name="sbom.cdx.json", content=b"{}\n")


def test_what_was_attached_is_found_by_the_image_s_digest(registry: Any) -> None:
    signed_one = Paper(kind=ENVELOPE, name="provenance.dsse.json", content=b'{"payload": ""}')
    first = attach(registry, SUBJECT, BILL)
    attach(registry, SUBJECT, signed_one)
    assert attach(registry, SUBJECT, BILL) == first
    assert sorted(attached(registry, SUBJECT), key=lambda paper: paper.kind) == [BILL, signed_one]
    assert attached(registry, OTHER) == []


def test_what_is_no_paper_of_ours_is_passed_over(registry: Any) -> None:
    """Others attach their signatures and scans to the same images."""
    attach(registry, SUBJECT, Paper(kind="application/vnd.other", name="x", content=b"1"))
    attach(registry, SUBJECT, BILL)
    assert attached(registry, SUBJECT) == [BILL]


def test_a_paper_about_another_image_is_not_taken_for_one_about_this() -> None:
    """Whoever can write the tag could list another image's papers under it."""
    old: Any = Memory(modern=False)
    attach(old, OTHER, BILL)
    old.manifests[f"sha256-{'a' * 64}"] = old.manifests[f"sha256-{'b' * 64}"]
    assert attached(old, SUBJECT) == []


@pytest.mark.parametrize("payload", [b"no JSON", b'{"manifests": 7}', b"[]"])
def test_a_list_that_cannot_be_read_is_an_error(payload: bytes) -> None:
    old: Any = Memory(modern=False)
    old.manifests[f"sha256-{'a' * 64}"] = payload
    with pytest.raises(VerificationError, match="cannot be read"):
        attached(old, SUBJECT)


# -- what verify makes of them -----------------------------------------------------------------------------------


@pytest.fixture
def one(make_inputs: Callable[..., Inputs], tmp_path: Path, console: Console) -> tuple[Inputs, Layout, Image]:
    inputs, layout = make_inputs(), Layout(tmp_path / "image")
    write_images(inputs, layers=LayerStore(tmp_path / "store"), layout=layout, console=console, images=("serve",))
    return inputs, layout, layout.images()[0]


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    key = Ed25519PrivateKey.generate()
    private, public = folder / name, folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def truth(inputs: Inputs, layout: Layout, image: Image) -> dict[str, Any]:
    bill = own_files(layout, image)["sbom.cdx.json"]
    digests = {"image/serve": image.descriptor.digest.removeprefix("sha256:"), "sbom/serve": hashlib.sha256(bill).hexdigest()}
    return statement(inputs, digests)


def test_attached_papers_are_judged(one: tuple[Inputs, Layout, Image], tmp_path: Path, console: Console) -> None:
    """A true one passes, a false one fails, none proves nothing; with a key nothing but that key's signature passes."""
    inputs, layout, image = one
    private, public = key_pair(tmp_path, "key")
    stranger, _ = key_pair(tmp_path, "stranger")
    verifier = Verifier(store=Store(tmp_path / "cache"), settings=Settings(), console=console)
    bill = Paper(kind=SBOM, name="", content=own_files(layout, image)["sbom.cdx.json"])
    true = truth(inputs, layout, image)
    other = {**true, "subject": [{"name": "image/serve", "digest": {"sha256": "1" * 64}}]}

    def paper(kind: str, document: object) -> Paper:
        return Paper(kind=kind, name="", content=json.dumps(document).encode())

    def found(*papers: Paper, key: Path | None = None) -> dict[str, str]:
        return {check.name: check.status for check in verifier._attached(layout, image, papers, key)}

    assert found() == {"sbom": "not-run", "provenance": "not-run"}
    assert found(key=public) == {"sbom": "not-run", "provenance": "not-run", "signature": "fail"}
    assert found(bill, paper(STATEMENT, true)) == {"sbom": "pass", "provenance": "pass"}
    assert found(BILL, paper(STATEMENT, other)) == {"sbom": "fail", "provenance": "fail"}
    assert found(paper(STATEMENT, [1]), paper(ENVELOPE, {"payload": 7}))["provenance"] == "fail"
    assert found(paper(STATEMENT, true), key=public)["signature"] == "fail"
    assert found(paper(ENVELOPE, signed(true, private)), key=public) == {"sbom": "not-run", "provenance": "pass", "signature": "pass"}
    assert found(paper(ENVELOPE, signed(true, stranger)), key=public)["signature"] == "fail"
    assert found(paper(ENVELOPE, signed(other, private)), key=public)["signature"] == "fail"


def test_a_statement_must_be_what_the_lock_gives(one: tuple[Inputs, Layout, Image]) -> None:
    """Its list of inputs is what an auditor reads: a wheel that is not in the image must not stand in it."""
    inputs, layout, image = one
    true = json.loads(json.dumps(truth(inputs, layout, image)))
    assert fault(true, {}, LOCK, inputs) == ""
    assert "sha256:1" in fault(true, {}, "sha256:1", inputs)
    true["predicate"]["buildDefinition"]["resolvedDependencies"].append({"name": "pkg:pypi/evil@1", "digest": {"sha256": "2" * 64}})
    assert fault(true, {}, LOCK, None) == ""
    assert "not what the lock gives" in fault(true, {}, LOCK, inputs)
    assert fault({}, {}, LOCK, None) == "it cannot be read"
