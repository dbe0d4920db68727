"""What `verify` says of a lock: an image brings its own, and must not pass for what this installation would make."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from envbuilder.build.image_inputs import ImageSource
from envbuilder.build.verification import Verified, Verifier, _described, _of_build, _whose
from envbuilder.console import Console
from envbuilder.errors import VerificationError
from envbuilder.images.verify import Check
from envbuilder.locking.model import read_lock
from envbuilder.store.cache import Store
from envbuilder.store.settings import Settings
from envbuilder.targets.catalogue import find_target, lock_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    target, path = find_target("cpu")
    name, release = target.release(None)
    return ImageSource(
        target=target,
        release_name=name,
        release=release,
        lock=read_lock(lock_folder(path, target, name)),
        lock_files={},
        machine="x86_64",
        store=Store(tmp_path),
        settings=Settings(),
        console=Console(stream=io.StringIO()),
    )


def test_a_lock_of_this_installation_is_known(source: ImageSource) -> None:
    assert _whose(source) == "that of cpu 0.29.0 here"


def test_a_lock_that_somebody_else_wrote_is_not(source: ImageSource) -> None:
    """Whole it is, and it may name any wheel."""
    assert _whose(replace(source, lock=replace(source.lock, digest="0" * 64))) == "of another cpu 0.29.0 than the one here"
    stranger = source.target.model_copy(update={"name": "stranger"})
    assert _whose(replace(source, target=stranger)) == "of stranger 0.29.0, which is not known here"


def test_another_target_around_a_known_lock_is_told(source: ImageSource) -> None:
    """Variables and the server's arguments stand in the target, and not in the lock."""
    serve = source.release.serve.model_copy(update={"arguments": ("--trust-remote-code",)})
    release = source.release.model_copy(update={"serve": serve})
    target = source.target.model_copy(update={"releases": {source.release_name: release}})
    assert _whose(replace(source, target=target, release=release)).endswith("with another target around it")


def test_a_build_s_images_are_of_its_own_lock() -> None:
    """Another build's layout, put into the folder, is whole as well."""
    verified = Verified(name="serve", digest="", lock="sha256:1", checks=(Check(name="lock", status="pass", detail=""),))
    assert _of_build(verified, "sha256:1") == verified
    assert [check.status for check in _of_build(verified, "sha256:2").checks] == ["pass", "fail"]


def described(**changes: object) -> bytes:
    row = {"name": "vllm", "file": "vllm-1-py3-none-any.whl", "sha256": "0" * 64}
    return json.dumps(
        {"image": "serve", "platform": "linux/x86_64", "release": "1", "envbuilder": "1", "distributions": [row], **changes}
    ).encode()


def test_a_description_is_read() -> None:
    assert _described(described())["image"] == "serve"


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{}",
        described(image="other"),
        described(platform=None),
        described(platform="linux/riscv64"),
        described(distributions=[{"name": "vllm"}]),
        described(distributions=[{"name": "vllm", "file": 1, "sha256": None}]),
        described(envbuilder=None),
    ],
)
def test_a_strange_description_is_no_traceback(content: bytes, source: ImageSource) -> None:
    """An image's own description is somebody's JSON; what is wrong with it is said as such."""
    verifier = Verifier(store=source.store, settings=source.settings, console=source.console)
    files = {"image.json": content, "target.json": b"{}", "lock/..": b"", **lock_of(source)}
    with pytest.raises(VerificationError, match="its own description cannot be read"):
        verifier._source(files, source.store.root, ())


def lock_of(source: ImageSource) -> dict[str, bytes]:
    _, path = find_target(source.target.name)
    folder = lock_folder(path, source.target, source.release_name)
    return {f"lock/{file.name}": file.read_bytes() for file in folder.iterdir()}


def test_files_of_another_envbuilder_are_not_called_false(source: ImageSource) -> None:
    """After an upgrade every image of before would be a forgery: the version stands in the files that are made anew."""
    verifier = Verifier(store=source.store, settings=source.settings, console=source.console)
    check = verifier._files(None, None, source, {"image.json": described(envbuilder="0.0.9")}, source.store.root)  # type: ignore[arg-type]
    assert (check.name, check.status) == ("files", "not-run")
    assert "0.0.9" in check.detail


def test_a_wheel_that_no_lock_names_is_only_taken_where_the_release_compiles_it(source: ImageSource) -> None:
    """Else an image could name any wheel that the store happens to have in place of a locked one, and pass."""
    content = b"compiled"
    sha256 = hashlib.sha256(content).hexdigest()
    row = {"name": "vllm", "file": "vllm-1-py3-none-any.whl", "sha256": sha256}
    place = source.store.path(sha256, row["file"])
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    verifier = Verifier(store=source.store, settings=source.settings, console=source.console)
    assert verifier._compiled_here(source, row) is None, "target cpu compiles nothing"
    spark, _ = find_target("dgx-spark")
    compiling = replace(source, target=spark, release=spark.release("0.23.0")[1])
    assert verifier._compiled_here(compiling, row) == place
    assert verifier._compiled_here(compiling, {**row, "name": "tqdm"}) is None
    place.write_bytes(b"damaged")
    assert verifier._compiled_here(compiling, row) is None
