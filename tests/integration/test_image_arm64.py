"""The serve image of dgx-spark in a real engine, on any machine: an arm64 container, emulated where it must be.

The image is made from locked aarch64 wheels and arm64 Debian packages; buildah unpacks and runs it. A libcuda.so.1 that
only links is given to it: that proves that torch and every extension of vLLM load, not that a kernel runs. Release
0.23.0-slim, for its size; ENVBUILDER_TEST_DGX_OUT names the folder of a finished build to use in its place.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from building import LAUNCHER
from engines import arm64_emulated, buildah_container
from wheels_of_aarch64 import driver

from envbuilder.images.oci import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.network, pytest.mark.programs, pytest.mark.timeout(3600)]
RELEASE = "0.23.0-slim"
SITE = "opt/venv/lib/python3.11/site-packages"
INSIDE = Path(__file__).with_name("compile_operators_inside.py")
# One of each kind: a kernel of the stable ABI, the memory allocator, attention, mixture of experts.
EXTENSIONS = {"_C.abi3.so", "_C_stable_libtorch.abi3.so", "_moe_C.abi3.so", "cumem_allocator.abi3.so"}


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layout]:
    if given := os.environ.get("ENVBUILDER_TEST_DGX_OUT"):
        yield Layout(Path(given) / "image")
        return
    out = tmp_path_factory.mktemp("dgx") / "out"
    command = [LAUNCHER, "build", "--target", "dgx-spark", "--release", RELEASE, "--vllm", "published", "--no-smoke", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    yield Layout(out / "image")
    shutil.rmtree(out)  # 11 GB that no later test needs


@pytest.fixture(scope="module")
def container(layout: Layout, buildah: Path) -> Iterator[str]:
    """A working container of the serve image, in buildah's storage."""
    with arm64_emulated():
        yield buildah_container(layout, "serve", "--arch", "arm64")


def said(*command: str | Path, timeout_s: float = 1800) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_four_images_for_arm64_were_written_here(layout: Layout) -> None:
    """Without the foreign path there would be none on an x86_64 machine, or one with this machine's files."""
    assert {image.name: image.config["architecture"] for image in layout.images()} == dict.fromkeys(
        ["base", "serve", "quantize", "dev"], "arm64"
    )


def test_its_user_is_not_root_and_its_programs_run(container: str) -> None:
    assert said("buildah", "run", container, "--", "sh", "-c", "uname -m; id -u; python --version").split() == [
        "aarch64",
        "1000",
        "Python",
        "3.11.2",
    ]


def test_torch_and_every_extension_of_vllm_load(container: str, tmp_path: Path) -> None:
    """The image's own files and its own loader, nothing of this machine: a wheel of another platform, or a library that is missing, shows."""
    root = Path(said("buildah", "mount", container).strip())
    stub = driver(tmp_path / "driver", [root / SITE])
    present = {path.name for path in (root / SITE / "vllm").glob("**/*.abi3.so")}
    mounts = ["-v", f"{stub}:/driver:ro", "-v", f"{INSIDE}:/inside.py:ro"]
    inside = ["env", "LD_LIBRARY_PATH=/driver", "python", "/inside.py", f"/{SITE}", "--import"]
    document: dict[str, Any] = json.loads(said("buildah", "run", *mounts, container, "--", *inside).splitlines()[-1])
    assert (document["torch"], document["cuda"]) == ("2.11.0+cu130", "13.0")
    assert document["vllm"] == "0.23.0"
    loaded = {Path(path).name: found for path, found in document["extensions"].items()}
    assert present >= EXTENSIONS
    assert loaded.keys() == present
    assert {name: found["error"] for name, found in loaded.items() if "error" in found} == {}
    operators = {name for found in loaded.values() for name in found["operators"]}
    assert len(operators) > 100
    assert {"_C::rms_norm", "_moe_C::topk_softmax"} <= operators
