"""What `verify` says of a build's folder that somebody changed: its manifest, and a wheel of the store."""

from __future__ import annotations

import hashlib
import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from envbuilder.build.image_inputs import _copy
from envbuilder.build.verification import Verifier
from envbuilder.console import Console
from envbuilder.errors import StorageError, UsageError, VerificationError
from envbuilder.images.layers import LayerStore
from envbuilder.images.oci import Descriptor
from envbuilder.images.oci import Layout as ImageLayout
from envbuilder.images.registry import Reference, Registry
from envbuilder.images.tree import file
from envbuilder.store.cache import Store
from envbuilder.store.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

ROW = {"name": "six", "file": "six-1-py3-none-any.whl", "sha256": "a" * 64}
SOUND = {"lock": "sha256:1", "environments": {"serve": {"distributions": [ROW]}}}


def verifier(root: Path) -> Verifier:
    return Verifier(store=Store(root / "store"), settings=Settings(), console=Console(stream=io.StringIO()))


@pytest.mark.parametrize(
    "manifest",
    [
        [],
        {},
        {**SOUND, "lock": None},
        {**SOUND, "environments": []},
        {**SOUND, "environments": {"../x": {"distributions": []}}},
        {**SOUND, "environments": {"serve": None}},
        *({**SOUND, "environments": {"serve": {"distributions": [{**ROW, key: value}]}}} for key in ROW for value in (None, 7, [], "../\0")
          if (key, value) != ("name", "../\0")),
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_told(tmp_path: Path, manifest: Any) -> None:
    """It was a KeyError with a traceback."""
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UsageError, match="is not a build's manifest"):
        verifier(tmp_path).verify(str(tmp_path))


def test_a_rotten_wheel_is_told(tmp_path: Path) -> None:
    """The store's disk may lose bytes: it is then the wheel that is wrong, and not the environment."""
    (tmp_path / "manifest.json").write_text(json.dumps(SOUND), encoding="utf-8")
    (tmp_path / "envs/serve/lib/python3.11/site-packages").mkdir(parents=True)
    checker = verifier(tmp_path)
    wheel = checker.store.path(ROW["sha256"], ROW["file"])
    wheel.parent.mkdir(parents=True)
    wheel.write_bytes(b"not a zip any more")
    with pytest.raises(VerificationError, match="a file of the store is damaged"):
        checker.verify(str(tmp_path))


def test_a_layer_of_the_store_is_not_fetched_again(tmp_path: Path) -> None:
    """Whoever verifies what was pushed from here has its gigabytes; no registry is asked, and none is there."""
    content = b"a layer"
    blob = Descriptor(media_type="x", digest=f"sha256:{hashlib.sha256(content).hexdigest()}", size=len(content))
    checker = verifier(tmp_path)
    here = LayerStore(checker.store.root).path(blob.digest)
    here.parent.mkdir(parents=True)
    here.write_bytes(content)
    registry = Registry(reference=Reference.parse("127.0.0.1:1/x"), settings=Settings(), state=tmp_path)
    with checker._scratch() as folder:
        assert folder.is_relative_to(checker.store.root)
        assert checker._pull(registry, ImageLayout(folder), blob) == 0
        assert ImageLayout(folder).check(blob) == ""
    assert not folder.exists()
    assert here.read_bytes() == content, "only its second name went"


def test_a_disk_that_fills_while_wheels_are_unpacked_is_told(tmp_path: Path) -> None:
    """It came up as an error of the wheel's."""
    goal = tmp_path / "library.so"
    goal.symlink_to("/dev/full")
    with pytest.raises(StorageError, match="the disk is full"):
        _copy(file("library.so", b"x"), goal)
