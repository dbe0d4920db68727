"""One repository for a fleet: which image has which tag there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from envbuilder.cli import main
from envbuilder.images.fleet import architecture_of, tags_of
from envbuilder.images.inputs import IMAGES
from envbuilder.images.registry import Reference
from envbuilder.targets.catalogue import find_target

if TYPE_CHECKING:
    from pathlib import Path


def test_no_platform_of_a_target_takes_another_s_tag() -> None:
    """`cuda` was pushed from x86_64 and then from aarch64: the same tag became another architecture without a word."""
    reference = Reference.parse("a.example/team/vllm:2026")
    for name, expected in (("cuda", {"2026-serve-amd64", "2026-serve-arm64"}), ("dgx-spark", {"2026-serve"}), ("cpu", {"2026-serve"})):
        target, _ = find_target(name)
        tags = [tags_of(reference, "1", IMAGES, architecture=architecture_of(target, machine)) for machine in target.machines]
        assert {it["serve"] for it in tags} == expected


@pytest.mark.parametrize("option", ["--push", "--cache-from"])
def test_four_images_have_no_digest_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    """It was left out without a word, and the images went under a tag that nobody named."""
    assert main(["image", "--out", str(tmp_path), option, f"a.example/x:1@sha256:{'0' * 64}"]) == 2
    assert "names one image by its digest" in capsys.readouterr().err
