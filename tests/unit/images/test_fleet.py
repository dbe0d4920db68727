"""One repository for a fleet: which image has which tag there, and what other machines take from it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from envbuilder import __version__
from envbuilder.build.image_inputs import compiled_of, hashes_of, target_document
from envbuilder.build.image_stage import source_of_lock
from envbuilder.build.papers import is_ours
from envbuilder.cli import main
from envbuilder.images import fleet
from envbuilder.images.fleet import Taken, architecture_of, tags_of
from envbuilder.images.inputs import IMAGES
from envbuilder.images.layers import LayerStore
from envbuilder.images.registry import Reference
from envbuilder.images.write import write_images
from envbuilder.store.cache import Store
from envbuilder.targets.catalogue import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from envbuilder.build.image_inputs import ImageSource
    from envbuilder.console import Console
    from envbuilder.images.inputs import Inputs
    from envbuilder.images.oci import Layout


def test_no_platform_of_a_target_takes_another_s_tag() -> None:
    """`cuda` was pushed from x86_64 and then from aarch64: the same tag became another architecture without a word."""
    reference = Reference.parse("a.example/team/vllm:2026")
    for name, expected in (("cuda", {"2026-serve-amd64", "2026-serve-arm64"}), ("dgx-spark", {"2026-serve"}), ("cpu", {"2026-serve"})):
        target, _ = find_target(name)
        tags = [tags_of(reference, "1", IMAGES, architecture=architecture_of(target, machine)) for machine in target.machines]
        assert {it["serve"] for it in tags} == expected


@pytest.fixture
def spark(console: Console, tmp_path: Path) -> ImageSource:
    return source_of_lock("dgx-spark", "0.23.0", None, store=Store(tmp_path / "store"), console=console, offline=True)


def described(source: ImageSource, changes: Mapping[str, Any], *own: str) -> dict[str, bytes]:
    """Return what an image says of itself that has `own` wheels beside one of the lock."""
    rows = [{"name": "torch", "sha256": min(hashes_of(source))}, *({"name": name, "sha256": "0" * 64} for name in own)]
    about = {
        "envbuilder": __version__,
        "python": "3.11",
        "platform": "linux/aarch64",
        "distributions": rows,
        "compiled": {name: compiled_of(source) for name in own},
        **changes,
    }
    return {"image.json": json.dumps(about).encode(), "target.json": target_document(source)}


def test_what_another_machine_compiled_of_the_same_source_is_taken(spark: ImageSource) -> None:
    """A fleet compiles once. The wheel's hash is in no lock; another source, edit or GPU is another wheel, and not ours."""
    assert is_ours(spark, described(spark, {}, "vllm"), compiled=True)
    assert is_ours(spark, described(spark, {}), compiled=True), "base and quantize have no vLLM"
    assert not is_ours(spark, described(spark, {}, "vllm")), "a build that is here has wheels of its own, or none"
    assert not is_ours(spark, described(spark, {}, "torch"), compiled=True)
    for part, value in (("gpu", "sm_90a"), ("edits", []), ("sources", [])):
        assert not is_ours(spark, described(spark, {"compiled": {"vllm": {**compiled_of(spark), part: value}}}, "vllm"), compiled=True)
    for nonsense in ({"compiled": {}}, {"compiled": []}, {"compiled": None}, {"distributions": [1]}):
        assert not is_ours(spark, described(spark, nonsense, "vllm"), compiled=True)


def test_the_published_wheel_is_not_taken_for_the_compiled_one(spark: ImageSource) -> None:
    """It is in the lock, and its kernels are for other GPUs."""
    published = next(wheel for wheel in spark.lock.wheels("serve", "3.11.0", "aarch64") if wheel.name == "vllm")
    rows = [{"name": "vllm", "sha256": published.file.sha256}]
    assert not is_ours(spark, described(spark, {"distributions": rows}), compiled=True)
    assert is_ours(spark, described(spark, {"distributions": rows}))


@pytest.mark.parametrize("ours", [True, False])
def test_a_machine_that_built_nothing_has_the_images_of_another(
    make_inputs: Callable[..., Inputs], tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch, *, ours: bool
) -> None:
    """A fleet would build on every machine what one has pushed; where nothing fits, there is nothing to make images from."""
    asked = []

    def take(reference: str, release: str, _lock: str, layout: Layout, **options: Any) -> Taken:
        asked.append((reference, release))
        if not ours:
            return Taken(images=(), detail="none there")
        write_images(make_inputs(), layers=LayerStore(tmp_path / "store"), layout=layout, console=console)
        return Taken(images=IMAGES, detail="")

    monkeypatch.setattr(fleet, "take", take)
    argv = ["image", "--out", str(tmp_path / "out"), "--target", "dgx-spark", "--release", "0.23.0", "--cache-from", "a.example/x"]
    assert main(argv) == (0 if ours else 2)
    assert asked == [("a.example/x", "0.23.0")]
    assert (tmp_path / "out/sbom.cdx.json").is_file() is ours


@pytest.mark.parametrize("option", ["--push", "--cache-from"])
def test_four_images_have_no_digest_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    """It was left out without a word, and the images went under a tag that nobody named."""
    assert main(["image", "--out", str(tmp_path), option, f"a.example/x:1@sha256:{'0' * 64}"]) == 2
    assert "names one image by its digest" in capsys.readouterr().err
