"""Environments broken in the ways their owners break them, made of real wheels: each is named by the right finding, first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from wheels_of_aarch64 import install

pytestmark = [pytest.mark.network, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
VLLM, TORCH, TRANSFORMERS = "vllm==0.23.0", "torch==2.11.0", "transformers==5.14.1"


def doctor(environment: Path, *arguments: str, target: str = "dgx-spark", **variables: str) -> list[dict[str, Any]]:
    """Return the findings that are faults, in their order."""
    command = [sys.executable, "-m", "envbuilder", "doctor", "--env", str(environment), "--target", target, "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables}, cwd=ROOT, timeout=300)
    assert done.returncode in {0, 1}, done.stderr
    return [finding for finding in json.loads(done.stdout)["findings"] if finding["status"] in {"fail", "warn", "crash"}]


def first(findings: list[dict[str, Any]]) -> str:
    """Return the id of the finding that stands first; none that crashed may be among them."""
    assert not [finding for finding in findings if finding["status"] == "crash"]
    return str(findings[0]["id"])


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("broken")


def test_the_same_wheels_as_they_belong_together_give_no_failure(wheels: Path) -> None:
    """The control: without it, the tests below would pass for a doctor that cries at everything."""
    env = install(
        wheels / "whole",
        [VLLM, TORCH, TRANSFORMERS, "nvidia-cuda-runtime==13.0.96", "compressed-tensors==0.17.0", "tokenizers==0.22.2", "triton==3.6.0"],
        dependencies=False,
    )
    failed = [finding for finding in doctor(env) if finding["status"] == "fail" and not finding["id"].startswith("EB-ABI-011")]
    # EB-ABI-011: of NVIDIA's 14 libraries only the runtime is installed here, to keep the download small.
    assert failed == []


def test_a_cpu_torch_on_aarch64(wheels: Path) -> None:
    """The default index serves torch 2.10.0 for aarch64 as a CPU build; its name does not say so."""
    findings = doctor(install(wheels / "cpu-torch", [VLLM, "torch==2.10.0", TRANSFORMERS], dependencies=False))
    assert first(findings) == "EB-TORCH-001"
    followers = {finding["id"] for finding in findings if finding["explained_by"] == "EB-TORCH-001"}
    assert followers & {"EB-ABI-007", "EB-ABI-013"}, "what its extensions lack follows from it"


def test_two_cuda_majors(wheels: Path) -> None:
    env = install(wheels / "majors", [TORCH, "nvidia-cuda-runtime==13.0.96", "nvidia-cuda-runtime-cu12==12.8.90"], dependencies=False)
    assert first(doctor(env)) == "EB-PKG-001"


def test_flashinfer_packages_of_two_versions(wheels: Path) -> None:
    env = install(wheels / "flashinfer", ["flashinfer-python==0.6.8.post1", "flashinfer-cubin==0.6.12"], dependencies=False)
    findings = doctor(env)
    assert first(findings) == "EB-FI-001"
    assert "flashinfer-cubin" in findings[0]["fix"]["commands"][0]


def test_the_flashinfer_repair_mends_a_real_environment_and_is_taken_back(wheels: Path, tmp_path: Path) -> None:
    env = install(wheels / "flashinfer-fix", ["flashinfer-python==0.6.8.post1", "flashinfer-cubin==0.6.12"], dependencies=False)
    before = sorted(path.name for path in env.iterdir())
    state = str(tmp_path / "state")
    assert "EB-FI-001" not in {finding["id"] for finding in doctor(env, "--fix", "--yes", ENVBUILDER_STATE=state)}
    assert not (env / "flashinfer_cubin").exists()
    subprocess.run(
        [sys.executable, "-m", "envbuilder", "doctor", "--undo"], check=True, env={**os.environ, "ENVBUILDER_STATE": state}, cwd=ROOT
    )
    assert [name for name in sorted(path.name for path in env.iterdir()) if not name.startswith(".envbuilder")] == before


def test_a_torch_repair_that_would_not_load_leaves_the_old_one_in_its_place(wheels: Path, tmp_path: Path) -> None:
    """The trap that most owners of a Spark step into, here without NVIDIA's libraries: the torch that fits would not load either."""
    env = wheels / "cpu-torch-fix"
    site = install(env / "lib/python3.12/site-packages", [VLLM, "torch==2.10.0", TRANSFORMERS], dependencies=False, python="3.12")
    (env / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.12.3\n")
    before = {path.relative_to(site): path.stat().st_size for path in site.rglob("*") if path.is_file()}
    assert first(doctor(env)) == "EB-TORCH-001"
    state = {"ENVBUILDER_STATE": str(tmp_path / "state")}
    assert first(doctor(env, "--fix", "--yes", **state)) == "EB-TORCH-001"
    assert {path.relative_to(site): path.stat().st_size for path in site.rglob("*") if path.is_file()} == before
    subprocess.run([sys.executable, "-m", "envbuilder", "doctor", "--undo"], check=True, env={**os.environ, **state}, cwd=ROOT)
    assert {path.relative_to(site): path.stat().st_size for path in site.rglob("*") if path.is_file()} == before


def test_a_transformers_too_old(wheels: Path) -> None:
    """What a bare resolve of vLLM 0.23.0 picks: allowed by its metadata, and without Gemma 4."""
    findings = doctor(install(wheels / "old", [VLLM, TORCH, "transformers==4.57.6", "nvidia-cuda-runtime==13.0.96"], dependencies=False))
    assert (
        "EB-TF-001"
        in [
            finding["id"]
            for finding in findings
            if not finding["explained_by"] and not finding["id"].startswith(("EB-ABI-011", "EB-ENV-014"))
        ][:1]
    )


def test_a_transformers_too_new(wheels: Path) -> None:
    findings = doctor(install(wheels / "new", [VLLM, TORCH, "transformers==5.15.0", "nvidia-cuda-runtime==13.0.96"], dependencies=False))
    assert (
        "EB-TF-002"
        in [finding["id"] for finding in findings if not finding["explained_by"] and not finding["id"].startswith("EB-ABI-011")][:1]
    )


def test_llmcompressor_and_vllm_in_one_environment(wheels: Path) -> None:
    env = install(
        wheels / "both",
        ["vllm==0.23.0", "llmcompressor==0.13.0", "compressed-tensors==0.17.0", TRANSFORMERS, TORCH, "nvidia-cuda-runtime==13.0.96"],
        dependencies=False,
    )
    findings = [finding for finding in doctor(env) if not finding["id"].startswith("EB-ABI-011")]
    assert first(findings) == "EB-LLMC-003"


def test_an_extension_cut_short(wheels: Path) -> None:
    env = install(wheels / "short", [VLLM, TORCH, TRANSFORMERS, "nvidia-cuda-runtime==13.0.96"], dependencies=False)
    target = env / "vllm/_C.abi3.so"
    data = target.read_bytes()
    target.unlink()  # it is a hard link into uv's cache: the file there must stay whole
    target.write_bytes(data[: len(data) // 3])
    findings = doctor(env)
    assert first(findings) == "EB-ENV-009"
    assert "vllm/_C.abi3.so" in findings[0]["evidence"][0]["value"]


def test_a_truncated_safetensors_file(wheels: Path, tmp_path: Path) -> None:
    """Written by the real library, as Hugging Face's cache lays it out, and cut off like a broken download."""
    library = install(wheels / "library", ["safetensors==0.6.2", "numpy==2.2.6"], dependencies=False, platform=None)
    folder = tmp_path / "hf/hub/models--google--gemma-4-12b-it/snapshots/abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "gemma4_unified"}')
    code = f"import numpy, safetensors.numpy as s; s.save_file({{'w': numpy.ones((512, 512), 'float32')}}, {str(folder / 'model.safetensors')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(library)})
    whole = (folder / "model.safetensors").read_bytes()
    assert doctor(library, target="cpu", HF_HOME=str(tmp_path / "hf")) == []
    (folder / "model.safetensors").write_bytes(whole[:-4096])
    findings = doctor(library, target="cpu", HF_HOME=str(tmp_path / "hf"))
    assert first(findings) == "EB-CKPT-001"
    assert f"{len(whole) - 4096} of {len(whole)} bytes" in findings[0]["evidence"][0]["value"]
