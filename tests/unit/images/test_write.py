"""Images from inputs: the same bytes every time, layers shared and small, and what an image says of itself."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import platform
import tarfile
import time
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from envbuilder.errors import ConfigurationError, StorageError, VerificationError
from envbuilder.images import entry_point
from envbuilder.images.layers import Blob, Compression, LayerStore, unpacked
from envbuilder.images.oci import Layout
from envbuilder.images.provenance import opened, signed, statement
from envbuilder.images.recipe import torch_closure
from envbuilder.images.sbom import sbom
from envbuilder.images.verify import check_blobs, check_files, own_files
from envbuilder.images.write import write_images
from tests.unit.images.small import wheel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from envbuilder.console import Console
    from envbuilder.images.inputs import Inputs
    from envbuilder.images.layers import Layer
    from envbuilder.images.oci import Image
    from envbuilder.images.write import Written


def written(inputs: Inputs, root: Path, console: Console, store: Path | None = None) -> dict[str, Written]:
    made = write_images(inputs, layers=LayerStore(store or root / "store"), layout=Layout(root / "image"), console=console)
    return {str(image.name): image for image in made}


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """Another umask, another time zone."""
    mask, zone = os.umask(0o077), os.environ.get("TZ")
    os.environ["TZ"] = "Pacific/Chatham"
    time.tzset()
    yield
    os.umask(mask)
    os.environ.pop("TZ") if zone is None else os.environ.update(TZ=zone)
    time.tzset()


@pytest.fixture
def images(make_inputs: Callable[..., Inputs], tmp_path: Path, console: Console) -> tuple[Inputs, Layout, dict[str, Image]]:
    inputs = make_inputs()
    written(inputs, tmp_path, console)
    layout = Layout(tmp_path / "image")
    return inputs, layout, {image.name: image for image in layout.images()}


def test_two_builds_have_the_same_digests(make_inputs: Callable[..., Inputs], tmp_path: Path, console: Console, elsewhere: None) -> None:
    """The claim of reproducibility: other folders, another umask, another zone, nothing shared."""
    first = written(make_inputs(), tmp_path / "a", console)
    os.umask(0o022)
    second = written(make_inputs(), tmp_path / "b" / "deeper", console)
    assert {name: image.descriptor for name, image in first.items()} == {name: image.descriptor for name, image in second.items()}


def test_one_changed_package_rewrites_its_layer_and_our_own(make_inputs: Callable[..., Inputs], tmp_path: Path, console: Console) -> None:
    """Otherwise every update would send gigabytes."""
    before = written(make_inputs(), tmp_path, console)["serve"]
    after = written(make_inputs(serve={"tqdm": wheel("tqdm", {"tqdm/__init__.py": b"other\n"})}), tmp_path, console)["serve"]
    changed = [name for (name, old), (_, new) in zip(before.layers, after.layers, strict=True) if old.digest != new.digest]
    assert len(changed) == 2
    assert changed[0].startswith("small wheels")
    assert changed[1] == "envbuilder"


def test_images_share_what_is_heavy(images: tuple[Inputs, Layout, dict[str, Image]]) -> None:
    """Torch and the root filesystem once, not four times."""
    _, _, found = images
    base = [layer.digest for layer in found["base"].layers[:-1]]
    for name in ("serve", "quantize", "dev"):
        assert [layer.digest for layer in found[name].layers[: len(base)]] == base
    assert {layer.digest for layer in found["serve"].layers[:-1]} < {layer.digest for layer in found["dev"].layers}


def test_what_torch_requires_does_not_depend_on_the_kernel(make_inputs: Callable[..., Inputs]) -> None:
    """The layers of `base` would: the kernel that runs where images are written must not decide what is in them."""
    metadata = f'Requires-Dist: tqdm; platform_release == "{platform.release()}"\nRequires-Dist: sympy; platform_machine == "x86_64"\n'
    inputs = make_inputs(serve={"torch": wheel("torch", {"torch/__init__.py": b""}, metadata=metadata)})
    assert torch_closure(inputs.environments["serve"], inputs) == {"torch", "sympy"}


def test_nobody_is_root_and_the_server_is_told_what_it_needs(images: tuple[Inputs, Layout, dict[str, Image]]) -> None:
    _, layout, found = images
    for image in found.values():
        assert image.config["config"]["User"] == "envbuilder"
        assert (image.config["architecture"], image.config["os"]) == ("amd64", "linux")
    assert found["serve"].config["config"]["Entrypoint"] == ["/opt/envbuilder/bin/serve"]
    files = own_files(layout, found["serve"])
    assert json.loads(files["bin/server.json"]) == ["--attention-backend", "TRITON_ATTN"]
    assert files["bin/serve"].startswith(b"#!/opt/venv/bin/python\n")
    assert b"torch==1.0\n" in files["constraints.txt"]
    assert found["serve"].labels["envbuilder.lock"] == "sha256:" + "0" * 64
    assert found["serve"].labels["envbuilder.version.vllm"] == "1.0"


def test_no_image_knows_where_it_was_made(images: tuple[Inputs, Layout, dict[str, Image]], tmp_path: Path) -> None:
    """A path, a name or a variable of the builder in a layer would make images differ, and tell tales."""
    import zstandard  # noqa: PLC0415

    _, layout, found = images
    for blob in {blob.digest for image in found.values() for blob in image.blobs}:
        content = layout.blob(blob).read_bytes()
        if content[:4] == b"\x28\xb5\x2f\xfd":
            content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
        assert str(tmp_path.parent).encode() not in content
        assert b"/tmp/pytest" not in content


def test_another_libzstd_is_refused(make_inputs: Callable[..., Inputs], tmp_path: Path, console: Console) -> None:
    """It would write other bytes, and the digest would be another one for no visible reason."""
    inputs = dataclasses.replace(make_inputs(), compression=Compression(level=3, library="0.0.1"))
    with pytest.raises(ConfigurationError, match=r"compressed with libzstd 0\.0\.1"):
        written(inputs, tmp_path, console)


def test_a_damaged_layer_in_the_store_is_made_anew(make_inputs: Callable[..., Inputs], tmp_path: Path, console: Console) -> None:
    inputs = make_inputs()
    first = written(inputs, tmp_path, console)["base"]
    victim = LayerStore(tmp_path / "store").path(first.layers[0][1].digest)
    victim.chmod(0o644)
    content = victim.read_bytes()
    victim.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    again = written(inputs, tmp_path / "other", console, store=tmp_path / "store")["base"]
    layout = Layout(tmp_path / "other" / "image")
    assert again.descriptor == first.descriptor
    assert check_blobs(layout, layout.images()[0]).status == "pass"


def test_layers_that_vanish_from_the_store_are_in_the_image_already(
    make_inputs: Callable[..., Inputs], tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cache gc` in another shell: a layer that was made must not be lost while the next ones are."""
    real = LayerStore.get

    def get(self: LayerStore, layer: Layer, compression: Compression) -> tuple[Blob, bool]:
        for path in (tmp_path / "store/layers/blobs").glob("*"):
            path.unlink()
        return real(self, layer, compression)

    monkeypatch.setattr(LayerStore, "get", get)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # one after the other
    written(make_inputs(), tmp_path, console)
    layout = Layout(tmp_path / "image")
    assert all(layout.check(blob) == "" for image in layout.images() for blob in image.blobs)
    assert not [path for path in (tmp_path / "image/blobs/sha256").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("pattern", ["*.deb", "torch-*.whl", "blob"])
def test_a_file_that_vanishes_is_an_error_with_a_remedy(
    make_inputs: Callable[..., Inputs], tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    """A cleaner of temporary files, or `cache gc`: a traceback would call it a fault of envbuilder."""
    inputs = make_inputs()
    if pattern == "blob":
        monkeypatch.setattr(LayerStore, "path", lambda self, digest: self.root / "gone" / digest)
        monkeypatch.setattr(
            LayerStore, "_write", lambda *_: (Blob(digest=f"sha256:{'0' * 64}", size=1, diff_id="", unpacked=1, files=1), 1)
        )
    else:
        next(inputs.packages[0].path.parent.glob(pattern)).unlink()
    with pytest.raises(StorageError, match="has vanished while it was used: /") as caught:
        written(inputs, tmp_path, console)
    assert "cache gc" in caught.value.why


def test_what_no_image_needs_is_removed(make_inputs: Callable[..., Inputs], tmp_path: Path, console: Console) -> None:
    written(make_inputs(), tmp_path, console)
    before = {path.name for path in (tmp_path / "image/blobs/sha256").iterdir()}
    written(make_inputs(serve={"tqdm": wheel("tqdm", {"tqdm/__init__.py": b"other\n"})}), tmp_path, console)
    after = {path.name for path in (tmp_path / "image/blobs/sha256").iterdir()}
    assert len(before) == len(after)
    assert before != after


# -- verify ------------------------------------------------------------------------------------------------------


def test_an_image_is_what_its_inputs_give(images: tuple[Inputs, Layout, dict[str, Image]]) -> None:
    inputs, layout, found = images
    for name, image in found.items():
        assert check_blobs(layout, image).status == "pass"
        assert check_files(layout, image, inputs, name, {}).status == "pass"  # type: ignore[arg-type]


def test_the_first_file_that_differs_is_named(make_inputs: Callable[..., Inputs], tmp_path: Path, console: Console) -> None:
    """An image that somebody rebuilt with another file has right digests; its lock gives another file."""
    written(make_inputs(serve={"tqdm": wheel("tqdm", {"tqdm/__init__.py": b"EVL\n"})}), tmp_path, console)
    layout = Layout(tmp_path / "image")
    image = next(image for image in layout.images() if image.name == "serve")
    check = check_files(layout, image, make_inputs(), "serve", {})
    assert check.status == "fail"
    assert check.detail.startswith("/opt/venv/lib/python3.11/site-packages/tqdm/__init__.py: its 4 bytes")


def test_a_file_too_many_and_one_too_few_are_named(make_inputs: Callable[..., Inputs], tmp_path: Path, console: Console) -> None:
    written(make_inputs(serve={"tqdm": wheel("tqdm", {"tqdm/__init__.py": b"bar\n", "tqdm/extra.py": b""})}), tmp_path, console)
    layout = Layout(tmp_path / "image")
    image = next(image for image in layout.images() if image.name == "serve")
    assert "/tqdm/extra.py is in the image and not in its lock" in check_files(layout, image, make_inputs(), "serve", {}).detail
    written(make_inputs(), tmp_path, console)
    image = next(image for image in layout.images() if image.name == "serve")
    other = make_inputs(serve={"tqdm": wheel("tqdm", {"tqdm/__init__.py": b"bar\n", "tqdm/extra.py": b""})})
    assert "/tqdm/extra.py is in the lock and not in the image" in check_files(layout, image, other, "serve", {}).detail


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pax_headers": {"SCHILY.xattr.security.capability": "\x01\0\0\x02"}}, "it also has SCHILY.xattr.security.capability"),
        ({"uname": "root"}, "its uname is 'root'"),
    ],
)
def test_a_right_that_no_lock_gives_is_found(change: dict[str, Any], told: str, images: tuple[Inputs, Layout, dict[str, Image]]) -> None:
    """A file capability makes a program as mighty as setuid does, and stands in no field of a plain header."""
    inputs, layout, found = images
    image = found["base"]
    layer = image.layers[0]
    goal = io.BytesIO()
    with (
        layout.blob(layer.digest).open("rb") as packed,
        tarfile.open(fileobj=unpacked(packed, layer.media_type), mode="r|") as old,
        tarfile.open(fileobj=goal, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in old:
            for name, value in change.items() if member.isfile() else ():
                setattr(member, name, value)
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    blob = layout.add_bytes(layer.media_type, zstandard.ZstdCompressor().compress(goal.getvalue()))
    rows = [{"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size}, *image.manifest["layers"][1:]]
    changed = dataclasses.replace(image, manifest={**image.manifest, "layers": rows})
    check = check_files(layout, changed, inputs, "base", {})
    assert check.status == "fail"
    assert told in check.detail


def test_one_changed_byte_is_found_and_placed(images: tuple[Inputs, Layout, dict[str, Image]]) -> None:
    inputs, layout, found = images
    path = layout.blob(found["base"].layers[0].digest)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 0xFF]) + content[len(content) // 2 + 1 :])
    assert "has the digest" in check_blobs(layout, found["base"]).detail
    check = check_files(layout, found["base"], inputs, "base", {})
    assert check.status == "fail"
    assert check.detail.startswith(("/", "layer"))


def test_a_changed_configuration_is_told(images: tuple[Inputs, Layout, dict[str, Image]]) -> None:
    """The files may be right and the user root."""
    inputs, layout, found = images
    image = found["serve"]
    config = {**image.config, "config": {**image.config["config"], "User": "root"}}
    check = check_files(layout, dataclasses.replace(image, config=config), inputs, "serve", {})
    assert (check.status, check.detail) == ("fail", 'its configuration: config is {"User": "root"}')


def test_an_image_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    config = layout.add_bytes("application/vnd.oci.image.config.v1+json", b'{"rootfs":{"diff_ids":[]}}')
    manifest = json.dumps({"config": config.as_dict(), "layers": []}).encode()
    layout.write_index([("x", layout.add_bytes("application/vnd.oci.image.manifest.v1+json", manifest), {})])
    with pytest.raises(VerificationError, match="not an image of envbuilder"):
        own_files(layout, layout.images()[0])


@pytest.mark.parametrize("config", [b"[]", b"null", b'{"config": null}', b'{"rootfs": []}', b'{"config": {"Labels": [1]}}'])
def test_a_strange_configuration_is_no_traceback(config: bytes, images: tuple[Inputs, Layout, dict[str, Image]]) -> None:
    """Whoever made the image wrote it."""
    inputs, layout, found = images
    row = layout.add_bytes("application/vnd.oci.image.config.v1+json", config).as_dict()
    manifest = layout.add_bytes(
        "application/vnd.oci.image.manifest.v1+json", json.dumps({**found["base"].manifest, "config": row}).encode()
    )
    try:
        image = layout.read("base", manifest)
    except VerificationError as error:
        assert "its manifest is none" in error.what  # noqa: PT017 - or it is read, and does not compare
        return
    assert image.labels == {}
    assert check_files(layout, image, inputs, "base", {}).status == "fail"


@pytest.mark.parametrize("index", [b"", b"[]", b'{"manifests": [{"digest": "sha256:xyz", "mediaType": "", "size": 1}]}'])
def test_a_folder_that_is_no_layout_is_refused(tmp_path: Path, index: bytes) -> None:
    (tmp_path / "index.json").write_bytes(index)
    with pytest.raises(VerificationError):
        Layout(tmp_path).images()


# -- papers ------------------------------------------------------------------------------------------------------


def test_the_bill_of_materials_is_cyclonedx(make_inputs: Callable[..., Inputs]) -> None:
    inputs = make_inputs()
    document = sbom("x", inputs.environments["serve"].wheels, inputs.packages, inputs.parts)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None
    found = {it["name"]: it for it in document["components"]}
    assert found["torch"]["licenses"] == [{"expression": "BSD-3-Clause"}]
    assert found["sympy"]["licenses"] == [{"license": {"name": "BSD License"}}]
    assert {it["license"]["name"] for it in found["gcc"]["licenses"]} == {"Artistic", "GPL-3+"}
    assert all(it["hashes"][0]["content"] for it in document["components"])


def test_a_signature_is_checked(make_inputs: Callable[..., Inputs], tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    def pair(name: str) -> tuple[Path, Path]:
        private = Ed25519PrivateKey.generate()
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        (tmp_path / f"{name}.pem").write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        (tmp_path / f"{name}.pub").write_bytes(private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
        return tmp_path / f"{name}.pem", tmp_path / f"{name}.pub"

    (private, public), (_, stranger) = pair("ours"), pair("theirs")
    document = statement(make_inputs(), {"image/serve": "0" * 64})
    envelope = signed(document, private)
    assert opened(envelope, public) == document
    assert signed(document, private) == envelope
    with pytest.raises(VerificationError, match="not signed by that key"):
        opened(envelope, stranger)
    with pytest.raises(VerificationError, match="not signed by that key"):
        opened({**envelope, "payload": "e30="}, public)
    with pytest.raises(ConfigurationError, match="no private Ed25519 key"):
        signed(document, public)


# -- the entry point ---------------------------------------------------------------------------------------------


def test_the_server_is_on_loopback_unless_asked() -> None:
    assert entry_point.command(["model"], []) == ["--model", "model", "--host", "127.0.0.1"]
    assert entry_point.command(["model", "--host=0.0.0.0"], []) == ["--model", "model", "--host=0.0.0.0"]


def test_what_the_caller_says_comes_before_the_target() -> None:
    defaults = ["--attention-backend", "TRITON_ATTN", "--enforce-eager", "--seed", "1"]
    assert entry_point.command(["m", "--host", "h", "--attention_backend", "X"], defaults) == [
        *("--model", "m", "--host", "h", "--attention_backend", "X"),
        *("--enforce-eager", "--seed", "1"),
    ]


@pytest.mark.parametrize("said", ["--attention-config.backend=X", "-ac.backend", "--attention-config", "-ac"])
def test_another_spelling_of_the_backend_takes_its_place(said: str) -> None:
    """Beside --attention-backend, vLLM refuses --attention-config."""
    assert "TRITON_ATTN" not in entry_point.command(["m", said, "X"], ["--attention-backend", "TRITON_ATTN"])


def test_remote_code_is_never_trusted_by_default() -> None:
    assert not any("trust" in word for word in entry_point.command(["m"], []))
