"""What an image says of itself: each word of it is made from what was proved, and `verify` holds labels against it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from envbuilder.images import about
from envbuilder.images.oci import Image
from envbuilder.images.recipe import contents
from envbuilder.images.verify import said

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuilder.images.inputs import ImageName, Inputs

SCHEMA = Path(about.__file__).parents[1] / "schemas" / "contents.json"
COMPILED = {
    "gpu": "sm_121a",
    "sources": [{"name": "vllm", "file": "vllm-1.0.tar.gz", "sha256": "0" * 64}],
    "components": [{"name": "_C", "how": "source", "reason": "because"}],
    "edits": [{"name": "archs", "path": "CMakeLists.txt", "reason": "because"}],
}


def compiled(inputs: Inputs) -> Inputs:
    serve = replace(inputs.environments["serve"], compiled={"vllm": COMPILED})
    return replace(inputs, environments={**inputs.environments, "serve": serve})


@pytest.mark.parametrize("image", ["base", "serve", "quantize", "dev"])
def test_it_is_what_its_schema_promises(make_inputs: Callable[..., Inputs], image: ImageName) -> None:
    """Scripts read image.json out of images that others made."""
    for inputs in (make_inputs(), compiled(make_inputs())):
        jsonschema.validate(json.loads(json.dumps(contents(image, inputs))), json.loads(SCHEMA.read_text()))


def test_every_part_has_a_source(make_inputs: Callable[..., Inputs]) -> None:
    """A wheel of our own must not pass for the published one."""
    found = contents("serve", compiled(make_inputs()))
    assert {row["name"]: row["source"] for row in found["distributions"]} == {
        "sympy": "published",
        "torch": "published",
        "tqdm": "published",
        "vllm": "compiled",
    }
    assert found["compiled"] == {"vllm": COMPILED}
    assert [row["path"] for row in found["overlays"]] == ["_overlay.pth"]
    said_of_it = about.labels(found)["envbuilder.sources"]
    assert said_of_it == "3 published wheels, 4 Debian packages, 1 compiled from source, 1 files of overlays"


def test_labels_tell_gpu_code_and_symbols(make_inputs: Callable[..., Inputs]) -> None:
    labels = about.labels(contents("serve", make_inputs()))
    assert labels["envbuilder.gpu"] == "sm_121a"
    assert labels["envbuilder.gpu-code.torch"] == "1 native, 3 none of 4 units for sm_121a"
    assert labels["envbuilder.gpu-code.vllm"] == "2 jit of 2 units for sm_121a"
    assert labels["envbuilder.abi"] == "2 extension modules ok"


def test_base_speaks_of_its_own_files_alone(make_inputs: Callable[..., Inputs]) -> None:
    """It has no vLLM, and must not claim vLLM's proofs."""
    found = contents("base", make_inputs())
    assert [row["path"] for row in found["abi"]] == ["torch/_C.so"]
    assert [row["path"] for row in found["gpu_code"]["files"]] == ["torch/_C.so"]
    assert [row["subject"] for row in found["gates"]] == ["torch's build"]
    assert "envbuilder.gpu-code.vllm" not in about.labels(found)


def test_without_a_gpu_of_its_own_a_target_s_archs_are_listed(make_inputs: Callable[..., Inputs]) -> None:
    found = contents("serve", make_inputs())
    found["gpu_code"]["arch"] = None
    labels = about.labels(found)
    assert "envbuilder.gpu" not in labels
    assert labels["envbuilder.gpu-code.torch"] == "sm_80 sm_121a"
    assert labels["envbuilder.gpu-code.vllm"] == "compute_80"


def labelled(labels: dict[str, str]) -> Image:
    held: Any = {"config": {"Labels": labels}}
    return Image(name="serve", descriptor=None, manifest={}, config=held)  # type: ignore[arg-type]


def test_labels_that_say_more_than_the_description_are_refused(make_inputs: Callable[..., Inputs]) -> None:
    """Labels are what a registry's page shows: a false one is found even where the files cannot be made anew."""
    found = contents("serve", make_inputs())
    true = about.labels(found)
    assert said(labelled(true), found, proved=True).status == "pass"
    assert said(labelled(true), found, proved=False).status == "not-run"
    for false in ({**true, "envbuilder.gpu-code.vllm": "100 native"}, {**true, "envbuilder.extra": "1"}, {}):
        check = said(labelled(false), found, proved=True)
        assert check.status == "fail"
        assert "label envbuilder" in check.detail or "label org" in check.detail
    assert said(labelled(true), {}, proved=True).status == "fail"
