"""What may stand in the repository: text, in modules of a size that one can read, that names no host and no machine."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Put together here, so that this file is not the first to break its own rule.
HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download", "pytorch", "org"),
        ("download-r2", "pytorch", "org"),
        ("deb", "debian", "org"),
        ("snapshot", "debian", "org"),
        ("ports", "ubuntu", "com"),
        ("archive", "ubuntu", "com"),
        ("registry", "npmjs", "org"),
        ("pypi", "nvidia", "com"),
        ("wheels", "vllm", "ai"),
    )
]
PLACES = ["/" + "work/", "/" + "tmp/w/", "/" + "root/.py"]
LARGEST = 1_000_000


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    return [path for name in os.fsdecode(listed.stdout).split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.programs
@pytest.mark.parametrize("words", [HOSTS, PLACES], ids=["hosts", "places"])
def test_no_file_names_a_registry_host_or_a_place_of_a_machine(words: list[str]) -> None:
    """Where bytes come from is the user's configuration; a path of the author's machine helps nobody."""
    pattern = re.compile("|".join(rf"(?<![\w.-]){re.escape(word)}" for word in words))
    texts = ((path, path.read_text(encoding="utf-8", errors="replace")) for path in tracked())
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path, text in texts
        if any(word in text for word in words)  # locks are long, and a pattern is slow
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


@pytest.mark.programs
def test_the_repository_holds_text_only_and_no_large_file() -> None:
    """Wheels, weights and environments belong in a store; a binary in git stays there for ever."""
    for path in tracked():
        payload = path.read_bytes()
        assert len(payload) < LARGEST, path
        assert path.suffix == ".png" or b"\0" not in payload, path


@pytest.mark.parametrize("folder", ["envbuilder", "tests", "bench"])
def test_no_module_is_longer_than_one_can_read(folder: str) -> None:
    long = {str(path): count for path in (ROOT / folder).rglob("*.py") if (count := len(path.read_text().splitlines())) > 600}
    assert long == {}


def test_every_module_of_the_package_has_its_annotations_as_text() -> None:
    """`from __future__ import annotations` in each: one without it evaluates its annotations, and then imports what they name."""
    for path in (ROOT / "envbuilder").rglob("*.py"):
        text = path.read_text()
        assert not text.strip() or "from __future__ import annotations" in text, path


@pytest.mark.parametrize("script", ["bin/envbuilder", "bin/test"])
def test_the_launchers_can_be_run_and_need_a_plain_shell_only(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/bin/sh\n")
