"""Documents that somebody changed, with or without the digests that lead to them: told, never believed, never a traceback."""

from __future__ import annotations

import copy
import io
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envbuilder.build.papers import statement_in
from envbuilder.build.verification import _described
from envbuilder.console import Console
from envbuilder.errors import EnvbuilderError
from envbuilder.files import canonical_json
from envbuilder.images.about import labels
from envbuilder.images.layers import LayerStore, unpacked
from envbuilder.images.oci import Descriptor, Layout
from envbuilder.images.provenance import fault, statement
from envbuilder.images.referrers import STATEMENT, Paper
from envbuilder.images.verify import check_blobs, check_files, own_files, said
from envbuilder.images.write import write_images
from tests.unit.images.small import small_inputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuilder.images.inputs import Inputs

    Change = Callable[[Any], Any]

EXAMPLES = int(os.environ.get("ENVBUILDER_TEST_EXAMPLES", "40"))  # of each kind
DEEP = b"[" * 100_000
LEAVES: tuple[Any, ...] = (None, True, 1.5, -1, 10**30, "", "\0", "sha256:" + "0" * 64, "é/../..", [], {}, [[]], {"": None})


class Ground:
    """A layout with one small image in it, and what it was written from; it is put back after each change."""

    def __init__(self, inputs: Inputs, layout: Layout) -> None:
        self.inputs, self.layout = inputs, layout
        self.index = (layout.root / "index.json").read_bytes()
        self.digest = layout.images()[0].descriptor.digest
        self.blobs = {path.name for path in self._all()}

    def _all(self) -> list[Any]:
        return list((self.layout.root / "blobs/sha256").iterdir())

    def restore(self) -> None:
        (self.layout.root / "index.json").write_bytes(self.index)
        for path in self._all():
            if path.name not in self.blobs:
                path.unlink()

    def name(self, manifest: bytes) -> None:
        """Make a manifest the image of this layout, as one would who changes an image with care."""
        descriptor = self.layout.add_bytes("application/vnd.oci.image.manifest.v1+json", manifest)
        index = json.loads(self.index)
        index["manifests"][0] |= descriptor.as_dict()
        (self.layout.root / "index.json").write_bytes(canonical_json(index))

    def passes(self) -> set[str]:
        """Check all images as `verify` does; return the digests of those that pass."""
        found = set()
        for image in self.layout.images():
            checks = [check_blobs(self.layout, image)]
            about = _described(own_files(self.layout, image)["image.json"])
            checks += [check_files(self.layout, image, self.inputs, about["image"], {}), said(image, about, proved=True)]
            if {check.status for check in checks} == {"pass"}:
                found.add(image.descriptor.digest)
        return found


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    root = tmp_path_factory.mktemp("mutated")
    (root / "inputs").mkdir()
    inputs, layout = small_inputs(root / "inputs"), Layout(root / "image")
    write_images(inputs, layers=LayerStore(root / "store"), layout=layout, console=Console(stream=io.StringIO()), images=["serve"])
    return Ground(inputs, layout)


@st.composite
def changed(draw: st.DrawFn, document: Any) -> bytes:
    """Change one place of a document: a key or row dropped, doubled or added, another value, or brackets without an end."""
    document = copy.deepcopy(document)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        rows = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in rows:
            places.append((node, key))
            walk(value)

    walk(document)
    node, key = draw(st.sampled_from(places))
    match draw(st.sampled_from(["drop", "add", "value", "value", "digit", "deep", "cut"])):
        case "drop":
            del node[key]
        case "add":
            node.append(node[key]) if isinstance(node, list) else node.update(extra=node[key])
        case "digit":
            old = node[key]
            node[key] = old + 1 if isinstance(old, int) else old[:-1] + ("0" if old[-1:] != "0" else "1") if isinstance(old, str) else 0
        case "value":
            node[key] = draw(st.sampled_from(LEAVES))
        case "deep":
            node[key] = "@deep@"
            return canonical_json(document).replace(b'"@deep@"', DEEP + DEEP.replace(b"[", b"]"))
        case "cut":
            payload = canonical_json(document)
            return payload[: draw(st.integers(0, len(payload) - 1))]
    return canonical_json(document)


often = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def unbelieved(ground: Ground) -> None:
    """Require that nothing passes but the image that was written, whatever the layout says now."""
    try:
        assert ground.passes() <= {ground.digest}
    except (EnvbuilderError, KeyError, TypeError, ValueError, AttributeError) as error:
        # `_described` leaves these to its caller, which tells them; nothing else may raise anything but an error of ours.
        assert isinstance(error, EnvbuilderError) or _is_of_description(error), repr(error)  # noqa: PT017
    finally:
        ground.restore()


def _is_of_description(error: BaseException) -> bool:
    trace, names = error.__traceback__, []
    while trace:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    return "_described" in names


def test_the_image_passes_as_it_was_written(ground: Ground) -> None:
    """Without this, a check that refuses everything would pass the tests below."""
    assert ground.passes() == {ground.digest}


@often
@given(data=st.data())
def test_a_changed_index_is_told(ground: Ground, data: st.DataObject) -> None:
    """It is read first, and nothing proves it."""
    (ground.layout.root / "index.json").write_bytes(data.draw(changed(json.loads(ground.index))))
    unbelieved(ground)


@often
@given(data=st.data())
def test_a_changed_manifest_is_told(ground: Ground, data: st.DataObject) -> None:
    """Its digest is right, since whoever changed it named it anew."""
    image = ground.layout.images()[0]
    ground.name(data.draw(changed(dict(image.manifest))))
    unbelieved(ground)


@often
@given(data=st.data())
def test_a_changed_configuration_is_told(ground: Ground, data: st.DataObject) -> None:
    """Who runs and what is started stands there; history and all that engines show as well."""
    image = ground.layout.images()[0]
    config = ground.layout.add_bytes(image.blobs[0].media_type, data.draw(changed(dict(image.config))))
    ground.name(canonical_json({**image.manifest, "config": config.as_dict()}))
    unbelieved(ground)


@often
@given(data=st.data())
def test_a_layer_with_other_bytes_is_told(ground: Ground, data: st.DataObject) -> None:
    """One bit, an end cut off, something behind the end: with the digests and sizes set right, the files are compared."""
    image = ground.layout.images()[0]
    place = data.draw(st.integers(0, len(image.layers) - 1))
    content = bytearray(ground.layout.blob(image.layers[place].digest).read_bytes())
    match data.draw(st.sampled_from(["bit", "cut", "more"])):
        case "bit":
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        case "more":
            content += b"\0more"
    layer = ground.layout.add_bytes(image.layers[place].media_type, bytes(content))
    layers = [it.as_dict() for it in image.layers]
    layers[place] = layer.as_dict()
    ground.name(canonical_json({**image.manifest, "layers": layers}))
    if _tar(ground.layout, image.layers[place]) == _tar(ground.layout, layer):
        ground.restore()  # zstd has a bit without a meaning: packed otherwise, the very same files
    else:
        unbelieved(ground)


def _tar(layout: Layout, layer: Descriptor) -> bytes | None:
    found = []
    try:
        with layout.blob(layer.digest).open("rb") as packed:
            stream = unpacked(packed, layer.media_type)
            while chunk := stream.read(1 << 20):
                found.append(chunk)
    except zstandard.ZstdError:
        return None
    return b"".join(found)


@often
@given(data=st.data())
def test_a_description_that_says_something_else_is_no_traceback(ground: Ground, data: st.DataObject) -> None:
    """image.json is read before it is proved; labels are made of it."""
    image = ground.layout.images()[0]
    about = json.loads(own_files(ground.layout, image)["image.json"])
    try:
        described = _described(data.draw(changed(about)))
    except (KeyError, TypeError, ValueError, AttributeError):
        return  # told as "its own description cannot be read"
    if said(image, described, proved=True).status == "pass":
        assert labels(described) == image.labels


@often
@given(data=st.data())
def test_a_changed_statement_is_told(ground: Ground, data: st.DataObject) -> None:
    """Provenance says what an image was made from: not a word of it may be another one."""
    subjects = {"image/serve": ground.digest.removeprefix("sha256:")}
    sound = statement(ground.inputs, subjects)
    lock = f"sha256:{ground.inputs.lock}"
    assert fault(sound, subjects, lock, ground.inputs) == ""
    content = data.draw(changed(sound))
    try:
        found = fault(statement_in(Paper(kind=STATEMENT, name="provenance.json", content=content)), subjects, lock, ground.inputs)
    except ValueError:
        return  # told by `verify` as what is wrong with the paper
    if not found:
        assert content == canonical_json(sound)


def test_nested_too_deeply_is_told(ground: Ground) -> None:
    """`json` raises RecursionError, which is no ValueError."""
    for document in ("index", "manifest"):
        if document == "index":
            (ground.layout.root / "index.json").write_bytes(DEEP)
        else:
            ground.name(DEEP)
        with pytest.raises(EnvbuilderError):
            ground.layout.images()
        ground.restore()


def test_a_descriptor_of_nothing_is_told(ground: Ground) -> None:
    """A digest that is a list cannot even be looked up."""
    (ground.layout.root / "index.json").write_bytes(
        canonical_json({"manifests": [{**Descriptor(media_type="x", digest="", size=1).as_dict(), "digest": []}]})
    )
    with pytest.raises(EnvbuilderError, match="not an OCI image layout"):
        ground.layout.images()
    ground.restore()
