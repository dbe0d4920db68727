"""Environments made by the real uv from real wheels, with a real kill -9."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from importlib import resources
from typing import TYPE_CHECKING

import jsonschema
import pytest
from tiny import ROOT, TARGET, Tiny, make_wheel

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path).locked()


def stages(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    return {stage["name"]: stage["status"] for stage in json.loads(done.stdout)["stages"]}


def inside(tiny: Tiny, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return tiny.run("run", "--out", tiny.out, *options, "--", "python", "-c", code)


def test_an_environment_holds_what_the_lock_names_and_nothing_else(tiny: Tiny) -> None:
    stages(tiny.build("--json"))
    code = "import importlib.metadata as m; print(sorted(d.name for d in m.distributions()))"
    assert inside(tiny, code).stdout == "['alpha', 'beta']\n"
    assert inside(tiny, code, "--env", "quantize").stdout == "['alpha']\n"


def test_a_second_build_does_nothing_and_takes_no_source(tiny: Tiny) -> None:
    first = stages(tiny.build("--json"))
    assert set(first.values()) == {"done", "not-run"}
    again = stages(tiny.build("--json", UV_FIND_LINKS=None))
    assert set(again.values()) == {"kept", "not-run"}


def test_two_builds_of_one_lock_have_the_same_manifest(tiny: Tiny) -> None:
    tiny.build()
    first = (tiny.out / "manifest.json").read_bytes()
    shutil.rmtree(tiny.out)
    tiny.build()
    assert (tiny.out / "manifest.json").read_bytes() == first
    assert str(tiny.root).encode() not in first, "a path of this machine would make every manifest another one"


@pytest.mark.parametrize(
    "damage", ["a distribution is gone", "another one came", "the folder is gone", "no interpreter", "another build's"]
)
def test_a_tampered_environment_is_made_anew_and_only_that_one(tiny: Tiny, damage: str) -> None:
    stages(tiny.build("--json"))
    environment = tiny.out / "envs" / "serve"
    [site] = environment.glob("lib/python3*/site-packages")
    match damage:
        case "a distribution is gone":
            shutil.rmtree(site / "beta-1.0.dist-info")
        case "another one came":
            (site / "gamma-1.0.dist-info").mkdir()
        case "the folder is gone":
            shutil.rmtree(environment)
        case "no interpreter":
            (environment / "bin" / "python").unlink()
        case _:
            (environment / ".envbuilder.json").write_text('{"identity": "other"}')
    again = stages(tiny.build("--json"))
    assert (again["assemble-serve"], again["assemble-quantize"], again["fetch"]) == ("done", "kept", "kept")
    assert inside(tiny, "import beta; print(beta.x)").stdout == "1\n"


def test_a_manifest_for_a_gpu_says_what_runs_there_found_once(tiny: Tiny) -> None:
    """What the manifest promises of exact builds: versions, hashes, symbols and GPU code; and a build that does nothing reads nothing."""
    tiny.target.write_text(TARGET.replace('device = "cpu"', 'device = "cuda"\ngpu = "sm_121a"'))
    assert stages(tiny.build("--json"))["gpu-code"] == "done"
    manifest = json.loads((tiny.out / "manifest.json").read_bytes())
    jsonschema.validate(manifest, json.loads(resources.files("envbuilder.schemas").joinpath("manifest.json").read_text(encoding="utf-8")))
    assert manifest["gpu_code"] == {name: {"arch": "sm_121a", "files": []} for name in ("serve", "quantize")}
    assert stages(tiny.build("--json"))["gpu-code"] == "kept"
    tiny.target.write_text(tiny.target.read_text().replace("sm_121a", "sm_90"))
    assert stages(tiny.build("--json"))["gpu-code"] == "done"


def test_a_changed_lock_replaces_the_environment_whole(tiny: Tiny) -> None:
    """What the old lock had and the new one has not must not linger."""
    tiny.build()
    tiny.target.write_text(TARGET.replace('["beta"]', '["alpha"]').replace('"beta"', '"alpha"'))
    assert tiny.run("lock", "--target", "tiny").returncode == 0
    again = stages(tiny.build("--json"))
    assert (again["assemble-serve"], again["assemble-quantize"]) == ("done", "kept")
    assert "No module named 'beta'" in inside(tiny, "import beta").stderr


@pytest.mark.parametrize("end", ["a gate does not hold", "killed in assemble"])
def test_nothing_tells_of_an_earlier_build_once_its_environments_are_replaced(tiny: Tiny, end: str) -> None:
    """The earlier build's manifest made `run` accept an environment of which nothing was proved."""
    tiny.build()
    if end == "a gate does not hold":
        tiny.target.write_text(TARGET.replace('["beta"]', '["alpha"]'))  # and the gate, that beta is there, stays
        assert tiny.run("lock", "--target", "tiny").returncode == 0
        failed = tiny.build()
        assert (failed.returncode, "beta must be >=1, found not installed" in failed.stderr) == (1, True), failed.stderr
    else:
        (tiny.out / "envs/serve/.envbuilder.json").write_text("{}")
        dying = "import os; from envbuilder.build import pipeline; pipeline.assemble = lambda *_, **__: os.kill(os.getpid(), 9)"
        assert tiny.run(*tiny.build_arguments, before=dying).returncode == -signal.SIGKILL
    assert not any((tiny.out / name).exists() for name in ("manifest.json", "smoke.json"))
    refused = inside(tiny, "print('ran')")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "manifest.json is written when every stage has ended well" in " ".join(refused.stderr.split())
    tiny.target.write_text(TARGET)
    assert tiny.run("lock", "--target", "tiny").returncode == 0
    stages(tiny.build("--json"))
    assert inside(tiny, "print('ran')").stdout == "ran\n"


def test_a_gate_that_does_not_hold_stops_the_build_with_its_reason(tiny: Tiny) -> None:
    tiny.target.write_text(TARGET.replace('">=1"', '">=2"'))
    done = tiny.build()
    assert done.returncode == 1
    assert "serve: beta must be >=2, found 1.0: the tests say so" in done.stderr
    assert not (tiny.out / "manifest.json").exists()
    tiny.target.write_text(TARGET)
    assert stages(tiny.build("--json"))["assemble-serve"] == "kept"


def test_one_path_of_two_distributions_is_an_error_unless_the_target_says_whose(tiny: Tiny) -> None:
    """Uv unpacks in parallel: without a rule it would be one on Monday and the other on Tuesday."""
    wheel = make_wheel(tiny.root, "alpha", code="whose = 'alpha'\n")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(zipfile.ZipInfo("beta.py"), "whose = 'alpha'\n")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(tiny.wheels / wheel.name, "w") as goal:
        for name in source.namelist():
            text = source.read(name).decode()
            goal.writestr(
                zipfile.ZipInfo(name), text.replace("alpha.py,,\n", "alpha.py,,\nbeta.py,,\n") if name.endswith("RECORD") else text
            )
    assert tiny.run("lock", "--target", "tiny").returncode == 0
    done = tiny.build()
    assert done.returncode == 1
    assert "beta.py comes with both" in done.stderr
    rule = '\n[[releases."1".serve.shared-paths]]\nowner = "beta"\nover = "alpha"\nreason = "it is beta\'s"\n'
    tiny.target.write_text(TARGET + rule)
    assert stages(tiny.build("--json"))["assemble-serve"] == "done"
    assert inside(tiny, "import beta; print(beta.x)").stdout == "1\n"


def test_a_relocated_output_folder_still_runs(tiny: Tiny) -> None:
    tiny.build()
    moved = tiny.out.rename(tiny.root / "moved away")
    ran = tiny.run("run", "--out", moved, "--", "python", "-c", "import beta, sys; print(sys.prefix)")
    assert ran.stdout == f"{moved}/envs/serve\n", ran.stderr


@pytest.mark.parametrize("delay", [0.15, 0.3, 0.45, 0.6, 0.9, 1.2])
def test_a_kill_at_any_moment_is_made_good_by_the_next_build(tiny: Tiny, delay: float) -> None:
    """Kill -9, wherever it strikes: the next build ends with the manifest of a build that nobody disturbed."""
    stages(tiny.build("--json"))
    expected = (tiny.out / "manifest.json").read_bytes()
    shutil.rmtree(tiny.out)
    shutil.rmtree(tiny.cache)
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from envbuilder.cli import main; sys.exit(main())"
    command = [sys.executable, "-I", "-c", code, str(ROOT), "build", "--target", "tiny", "--no-smoke", "--out", str(tiny.out)]
    first = subprocess.Popen(command, env=tiny.variables, cwd=tiny.root, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    time.sleep(delay)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    stages(tiny.build("--json"))
    assert (tiny.out / "manifest.json").read_bytes() == expected
    assert not (tiny.out / ".scratch").exists()
    assert sorted(path.name for path in (tiny.out / "envs").iterdir()) == ["quantize", "serve"]
    assert not list((tiny.cache / "partial").glob("*[!k]")), "a download is left over"


def test_three_builds_at_once_end_alike(tiny: Tiny) -> None:
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from envbuilder.cli import main; sys.exit(main())"
    command = [sys.executable, "-I", "-c", code, str(ROOT), "build", "--target", "tiny", "--no-smoke", "--json", "--out", str(tiny.out)]
    running = [
        subprocess.Popen(command, env=tiny.variables, cwd=tiny.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    ended = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], ended
    made = [sum(stage["status"] == "done" for stage in json.loads(printed)["stages"]) for printed, _ in ended]
    assert sorted(made)[:2] == [0, 0], "only the first of them had anything to do"


def test_a_program_of_the_environment_gets_signals_and_its_exit_code_counts(tiny: Tiny) -> None:
    tiny.build()
    assert inside(tiny, "raise SystemExit(7)").returncode == 7
    assert inside(tiny, "import os; os.kill(os.getpid(), 15)").returncode == -15
    missing = tiny.run("run", "--out", tiny.out, "--", "no-such-program")
    assert (missing.returncode, "neither in envs/serve nor on PATH" in missing.stderr) == (4, True)
    nothing = tiny.run("run", "--out", tiny.root / "elsewhere", "--", "python")
    assert (nothing.returncode, "holds no finished build" in nothing.stderr) == (2, True)
