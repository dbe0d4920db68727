"""What a manifest and an image say of an environment's GPU code."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING

import jsonschema
import pytest
from test_gpu_code import container, embedded

from envbuilder.binaries.gpu_summary import summary

if TYPE_CHECKING:
    from elf_forge import Forge

AARCH64 = 183  # EM_AARCH64


@pytest.fixture
def site(forge: Forge) -> Forge:
    """Of another machine, as a dgx-spark environment is where it is assembled on x86_64."""
    made = [
        embedded(forge, "vllm/_C.abi3.so", container("sm_120f", "compute_80")),
        embedded(forge, "vllm/fa3/_C.abi3.so", container("sm_90a")),
        embedded(forge, "torch/lib/libtorch_cuda.so", container("sm_90", "sm_120")),
        embedded(forge, "flashinfer/x.so", container("sm_121a")),
        forge.so("torch/lib/libc10.so"),
    ]
    for path in made:
        data = bytearray(path.read_bytes())
        data[18:20] = AARCH64.to_bytes(2, "little")
        path.write_bytes(data)
    return forge


def test_it_says_of_torch_and_vllm_file_by_file_how_their_code_runs(site: Forge) -> None:
    """The manifest named versions, hashes and symbols, and nothing of the code that a Spark is to run."""
    found = summary(site.root, "sm_121a")
    assert [(row["path"], row["verdict"]) for row in found["files"]] == [
        ("torch/lib/libtorch_cuda.so", "family"),
        ("vllm/_C.abi3.so", "family"),
        ("vllm/fa3/_C.abi3.so", "none"),
    ]
    assert found["files"][1] == {
        "path": "vllm/_C.abi3.so",
        "cubins": {"sm_120f": 1},
        "ptx": {"compute_80": 1},
        "units": {"family": 1},
        "verdict": "family",
    }


@pytest.mark.parametrize("gpu", ["sm_121a", None])
def test_the_manifest_s_schema_knows_it(site: Forge, gpu: str | None) -> None:
    """A target of many GPUs has no verdicts: which code is for which GPU is said all the same."""
    schema = json.loads(resources.files("envbuilder.schemas").joinpath("manifest.json").read_text(encoding="utf-8"))
    found = summary(site.root, gpu)
    jsonschema.validate(found, {"$ref": "#/$defs/gpu_code", "$defs": schema["$defs"]})
    assert all(("verdict" in row) == bool(gpu) for row in found["files"])
    assert found == summary(site.root, gpu)


def test_an_environment_without_either_has_nothing(forge: Forge) -> None:
    assert summary(forge.root, "sm_121a") == {"arch": "sm_121a", "files": []}
