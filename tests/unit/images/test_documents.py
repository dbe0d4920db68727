"""What `image --json` and `verify --json` print is what their schemas promise to scripts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from envbuilder.build.verification import Verified
from envbuilder.commands import image, verify
from envbuilder.errors import UsageError
from envbuilder.images.registry import Reference
from envbuilder.images.verify import Check
from envbuilder.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuilder.console import Console
    from envbuilder.images.inputs import Inputs

SCHEMAS = Path(image.__file__).parents[1] / "schemas"


def check(document: dict[str, Any], name: str) -> None:
    jsonschema.validate(json.loads(json.dumps(document)), json.loads((SCHEMAS / f"{name}.json").read_text()))


def test_image(make_inputs: Callable[..., Inputs], tmp_path: Path, console: Console) -> None:
    from envbuilder.images.layers import LayerStore  # noqa: PLC0415
    from envbuilder.images.oci import Layout as ImageLayout  # noqa: PLC0415
    from envbuilder.images.write import write_images  # noqa: PLC0415

    layout = ImageLayout(tmp_path / "image")
    write_images(make_inputs(), layers=LayerStore(tmp_path / "store"), layout=layout, console=console)
    source: Any = SimpleNamespace(target=SimpleNamespace(name="cpu"), release_name="1", lock=SimpleNamespace(digest="0" * 64))
    attached = [{"kind": "application/vnd.in-toto+json", "digest": f"sha256:{'2' * 64}"}]
    pushed = [{"reference": "a.example/b:c", "digest": f"sha256:{'1' * 64}", "attached": attached}]
    loaded = [{"engine": "docker", "tag": "x", "id": "y"}]
    document = image._document(source, Layout.of(tmp_path), layout.images(), reused=False, pushed=pushed, loaded=loaded)
    check(document, "image")
    assert [it["name"] for it in document["images"]] == ["base", "serve", "quantize", "dev"]


@pytest.mark.parametrize(
    ("found", "ok"),
    [
        ({"files": "pass"}, True),
        ({"files": "pass", "sbom": "not-run"}, True),
        ({"files": "pass", "digests": "fail"}, False),
        ({"files": "not-run"}, False),
        ({"files": "not-run", "signature": "fail"}, False),
        ({"files": "not-run", "signature": "pass"}, True),
    ],
)
def test_verify_fails_when_one_check_does_and_when_no_file_was_compared(found: dict[str, str], ok: bool) -> None:  # noqa: FBT001
    """An image can say of itself that it cannot be compared; only a signature that was asked for vouches for one."""
    checks = tuple(Check(name=name, status=status, detail="") for name, status in found.items())
    document = verify._document("x", [Verified(name="serve", digest="", lock="", checks=checks)])
    check(document, "verify")
    assert document["ok"] is ok


@pytest.mark.parametrize("name", ["vllm", "team/vllm:1", "a.example/UPPER", "a.example/x:", "a.example/x@sha256:12"])
def test_a_name_that_is_no_registry_s_is_refused(name: str) -> None:
    """Which registry `vllm` means is a guess that other tools make."""
    with pytest.raises(UsageError, match="not the name of an image in a registry"):
        Reference.parse(name)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("localhost:5000/x:1", "http://localhost:5000"),
        ("127.0.0.1/x", "http://127.0.0.1"),
        ("a.example/x/y:1.2-serve", "https://a.example"),
        ("127.0.0.1.a.example:443/x", "https://127.0.0.1.a.example:443"),
    ],
)
def test_only_this_machine_is_spoken_to_in_the_clear(name: str, url: str) -> None:
    assert Reference.parse(name).url == url
