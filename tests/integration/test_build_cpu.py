"""The main job, end to end: the README's command on target cpu, with real wheels and a real server."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from importlib import resources
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from building import LAUNCHER, STAGES

from envbuilder.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path

    from building import KilledBuild

pytestmark = [pytest.mark.network, pytest.mark.enable_socket, pytest.mark.programs]


def _schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(resources.files("envbuilder.schemas").joinpath(f"{name}.json").read_bytes())
    return schema


def _envbuilder(*arguments: str | Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LAUNCHER, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, check=False)


def test_a_build_killed_in_every_long_stage_goes_on_and_ends_well(built_cpu: KilledBuild) -> None:
    """Without resumable stages, or with half-made output left in place, one of the restarts would fail or start over."""
    if not built_cpu.killed_in:
        pytest.skip("ENVBUILDER_TEST_OUT names a build that was not killed")
    assert built_cpu.killed_in == ("assemble-serve", "assemble-quantize", "quantize", "serve")
    assert "✓ assemble-serve" not in built_cpu.last_stderr, "the last run assembled again what was whole"
    assert "✓ serve" in built_cpu.last_stderr
    assert not built_cpu.layout.scratch.exists()


def test_the_manifest_says_what_was_proved(built_cpu: KilledBuild) -> None:
    """Other tools read the manifest; a missing part or a wrong type would break them."""
    manifest = json.loads(built_cpu.layout.manifest.read_bytes())
    jsonschema.validate(manifest, _schema("manifest"))
    assert manifest["target"] == "cpu"
    assert manifest["environments"]["serve"]["torch"] == {"version": "2.13.0+cpu", "cuda": None}
    assert {gate["subject"] for gate in manifest["gates"]} >= {"transformers", "torch's build", "Gemma4UnifiedForConditionalGeneration"}
    vllm = [it for it in manifest["abi"]["serve"]["extensions"] if it["path"].startswith("vllm/")]
    assert vllm
    assert all(extension["verdict"] == "ok" for extension in vllm)
    assert manifest["smoke"]["exact"] is True


def test_the_canary_sang_the_same_in_every_form(built_cpu: KilledBuild) -> None:
    """A server that answers fluent nonsense with HTTP 200 must not count as a build."""
    smoke = json.loads(built_cpu.layout.smoke.read_bytes())
    jsonschema.validate(smoke, _schema("smoke"))
    assert set(smoke["decoded"].values()) == {smoke["expected"]}
    assert any("kernel" in line for line in smoke["not_proved"]), "on a CPU the GPU's kernel was not proved, and the report must say so"


def test_an_undisturbed_build_has_the_same_manifest(built_cpu: KilledBuild, tmp_path: Path) -> None:
    """Whatever makes the killed build's manifest differ (a time, a path, a leftover) makes it useless as a witness."""
    layout = Layout.of(tmp_path / "undisturbed")
    done = _envbuilder("build", "--target", "cpu", "--no-image", "--out", layout.out, "--json", timeout=900)
    assert done.returncode == 0, done.stderr
    jsonschema.validate(json.loads(done.stdout), _schema("build"))
    assert [stage["name"] for stage in json.loads(done.stdout)["stages"]] == list(STAGES)
    assert layout.manifest.read_bytes() == built_cpu.layout.manifest.read_bytes()


def test_nothing_changed_means_nothing_done(built_cpu: KilledBuild) -> None:
    """A second build that fetches, installs or serves again would cost minutes each time."""
    before = {path: path.stat().st_mtime_ns for path in built_cpu.layout.out.iterdir() if path.is_file()}
    done = _envbuilder("build", "--target", "cpu", "--no-image", "--out", built_cpu.layout.out, "--json")
    assert done.returncode == 0, done.stderr
    assert {stage["status"] for stage in json.loads(done.stdout)["stages"] if stage["name"] != "image"} == {"kept"}
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path.name for path in before if before[path] != after[path]} <= {".lock"}


def test_an_environment_that_was_changed_by_hand_is_made_again(built_cpu: KilledBuild) -> None:
    """`pip install` in a built environment must not survive a build that claims to be what the lock says."""
    site = next(built_cpu.layout.environment("quantize").glob("lib/python3*/site-packages"))
    (site / "intruder-1.0.dist-info").mkdir()
    done = _envbuilder("build", "--target", "cpu", "--no-image", "--out", built_cpu.layout.out, "--json")
    assert done.returncode == 0, done.stderr
    assert {stage["name"] for stage in json.loads(done.stdout)["stages"] if stage["status"] == "done"} == {"assemble-quantize", "manifest"}
    site = next(built_cpu.layout.environment("quantize").glob("lib/python3*/site-packages"))
    assert not (site / "intruder-1.0.dist-info").exists()


def test_run_gives_the_environment_and_the_command_s_exit_code(built_cpu: KilledBuild) -> None:
    """`run` is how people use the result: the wrong interpreter or a swallowed exit code would mislead them."""
    script = "import os, sys, torch; print(torch.__version__, os.environ['VLLM_CPU_OMP_THREADS_BIND']); sys.exit(7)"
    done = _envbuilder("run", "--out", built_cpu.layout.out, "--", "python", "-c", script)
    assert done.stdout.split() == ["2.13.0+cpu", "nobind"]
    assert done.returncode == 7


def test_two_builds_of_one_folder_take_turns(built_cpu: KilledBuild, tmp_path: Path) -> None:
    """Two at once, unlocked, would rename environments from under each other."""
    out = tmp_path / "shared"
    command = [LAUNCHER, "build", "--target", "cpu", "--no-smoke", "--no-image", "--out", out]
    builds = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(2)]
    said = [build.communicate(timeout=300)[1] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], said
    assert sum("waiting for it to end" in text for text in said) == 1
    assert sum("✓ assemble-serve" in text for text in said) == 1, "both assembled"
    shutil.rmtree(out)


def test_a_server_of_the_environment_answers(built_cpu: KilledBuild) -> None:
    """The command that the README shows for serving works as it stands there."""
    started = time.monotonic()
    done = _envbuilder(
        "run", "--out", built_cpu.layout.out, "--", "python", "-m", "vllm.entrypoints.openai.api_server", "--help", timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "--attention-backend" in done.stdout, f"after {time.monotonic() - started:.0f} s"
