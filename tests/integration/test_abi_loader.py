"""The real loader, under arm64 emulation, says the same as `abi` for every extension.

For vLLM 0.23.0 (with `_C`) and 0.24.0 (without) against torch 2.11.0 (CUDA) and 2.10.0 (CPU-only, the published trap),
from their real aarch64 wheels. Needs qemu-user-static and mmdebstrap (apt), 3 GB of wheels and a few minutes.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from wheels_of_aarch64 import driver, install, need, rootfs

from envbuilder.binaries.abi import check_environment
from envbuilder.binaries.environment import torch_at
from envbuilder.binaries.system import read_system
from envbuilder.binaries.verdicts import Kind, Verdict

if TYPE_CHECKING:
    from envbuilder.binaries.verdicts import AbiReport, ExtensionReport

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(1800)]

TORCH = ("2.11.0", "2.10.0")
VLLM = ("0.23.0", "0.24.0")


@dataclass(frozen=True)
class Stage:
    """An arm64 root folder, a stub of the driver, and the installed wheels by version."""

    place: Path
    driver: Path
    torches: dict[str, Path]
    vllms: dict[str, Path]

    def loader_says(self, torch: str, paths: list[str]) -> dict[str, str]:
        """Import this torch under emulation, then open each file; return what the loader said."""
        listing, goal, root = self.place / "list.json", self.place / "results.json", self.place / "rootfs"
        listing.write_text(json.dumps(paths))
        goal.unlink(missing_ok=True)
        variables = {"LD_LIBRARY_PATH": self.driver, "PYTHONPATH": self.torches[torch], "PYTHONDONTWRITEBYTECODE": 1, "PYTHONNOUSERSITE": 1}
        settings = [part for name, value in variables.items() for part in ("-E", f"{name}={value}")]
        inside = Path(__file__).with_name("abi_loader_inside.py")
        command = ["qemu-aarch64-static", "-L", root, *settings, root / "usr/bin/python3.11", inside, listing, goal]
        subprocess.run(command, check=True, timeout=900)
        return dict(json.loads(goal.read_text())["results"])


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    need("qemu-aarch64-static")
    place = tmp_path_factory.mktemp("loader")
    rootfs(place / "rootfs")
    torches = {version: install(place / f"torch-{version}", [f"torch=={version}", "numpy"], dependencies=True) for version in TORCH}
    beside = ("torchvision==0.26.0", "torchaudio==2.11.0", "pillow")
    wanted = {version: [f"vllm=={version}", *(beside if version == VLLM[0] else ())] for version in VLLM}
    vllms = {version: install(place / f"vllm-{version}", names, dependencies=False) for version, names in wanted.items()}
    return Stage(place=place, driver=driver(place / "driver", vllms.values()), torches=torches, vllms=vllms)


@pytest.mark.parametrize("torch", TORCH)
@pytest.mark.parametrize("vllm", VLLM)
def test_every_verdict_is_the_loaders(vllm: str, torch: str, stage: Stage) -> None:
    """If one differs, the gate lets a broken environment pass, or refuses a sound one."""
    system = read_system(stage.place / "rootfs", machine="aarch64")
    root, beside = stage.vllms[vllm], stage.torches[torch]
    report = check_environment(root, torch=torch_at(beside), python="311", system=system)
    own = check_environment(beside, python="311", system=system)
    said = stage.loader_says(torch, [str(root / it.path) for it in report.extensions] + [str(beside / it.path) for it in own.extensions])
    _compare(report, said, root)
    _compare(own, said, beside)
    names = {Path(extension.path).name for extension in report.extensions}
    assert ("_C.abi3.so" in names) == (vllm == "0.23.0"), "one release with _C, one without"
    assert own.ok
    if torch == "2.10.0":
        assert report.causes[0].kind is Kind.CPU_ONLY_TORCH
        assert report.causes[0].text.startswith("this torch has no CUDA: torch 2.10.0+cpu")
    else:
        assert report.ok


def _compare(report: AbiReport, said: dict[str, str], root: Path) -> None:
    assert len(report.extensions) > 0
    differing = []
    for extension in report.extensions:
        line = said[str(root / extension.path)]
        linked = line == "ok" or line.startswith("died")
        named = linked or any(name in line for name in _missing_names(extension))
        if linked != (extension.verdict is Verdict.OK) or not named:
            differing.append((extension.path, extension.verdict, line))
    assert differing == []


def _missing_names(extension: ExtensionReport) -> list[str]:
    return [need.soname for need in extension.needed if need.found is None] + [it.symbol.partition("@")[0] for it in extension.missing]
