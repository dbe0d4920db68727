"""A release's own files, committed to git and packed as a commit's wheel, must give the release's wheel again."""

from __future__ import annotations

import subprocess
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement

from envbuilder.compile.packing import owner_of, pack
from envbuilder.compile.sources import read_source
from envbuilder.console import Console
from envbuilder.locking.model import read_lock
from envbuilder.store.cache import Store, Wanted, default_root
from envbuilder.store.fetch import fetch
from envbuilder.store.git import write_archive
from envbuilder.store.settings import read_settings
from envbuilder.targets.catalogue import find_target, lock_folder

if TYPE_CHECKING:
    from pathlib import Path

NAME = "vllm-project/vllm"


def requirements(metadata: bytes) -> set[str]:
    lines = metadata.decode().partition("\n\n")[0].splitlines()
    return {str(Requirement(line.removeprefix("Requires-Dist: "))) for line in lines if line.startswith("Requires-Dist: ")}


def committed(forge: Path, sdist: Path) -> None:
    """Commit what an sdist holds, but for what setuptools writes into one."""
    work = forge / NAME
    work.mkdir(parents=True)
    with tarfile.open(sdist) as tar:
        tar.extractall(forge, filter="data")
    (forge / sdist.name.removesuffix(".tar.gz")).replace(work)
    (work / "vllm/_version.py").unlink()
    (work / "PKG-INFO").unlink()
    for command in (["init", "--quiet"], ["add", "--all", "--force"], ["commit", "--quiet", "-m", "x"], ["tag", "v0.23.0"]):
        subprocess.run(["git", "-C", work, *command], check=True, capture_output=True)


@pytest.mark.timeout(900)  # 5,000 files are committed and 500 MB compressed
def test_a_commit_s_list_of_files_and_requirements_is_what_the_release_s_builder_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule by which a commit's wheel is put together is only right if it gives the published wheel for its own source."""
    target, path = find_target("dgx-spark")
    spec = target.releases["0.23.0"].compile
    assert spec is not None
    assert spec.sdist is not None
    store = Store(default_root())
    wheels = read_lock(lock_folder(path, target, "0.23.0")).wheels("serve", "3.12.3", "aarch64")
    vllm = next(wheel.file for wheel in wheels if wheel.name == "vllm")
    wanted = [Wanted(project="vllm", filename=it.filename, sha256=it.sha256, size=it.size) for it in (vllm, spec.sdist)]
    fetch(wanted, store=store, settings=read_settings(), console=Console())
    published = store.path(vllm.sha256, vllm.filename)

    (tmp_path / "gitconfig").write_text(
        f'[url "file://{tmp_path}/forge/"]\n\tinsteadOf = https://github.com/\n[user]\n\tname = A\n\temail = a@example.org\n'
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    committed(tmp_path / "forge", store.path(spec.sdist.sha256, spec.sdist.filename))
    commit = write_archive(NAME, "v0.23.0", tmp_path / "vllm.tar")
    with zipfile.ZipFile(published) as release:
        built = {}
        for name in release.namelist():
            owner = owner_of(name, spec.components)
            if owner and owner.how == "source":
                built[name.rpartition("/")[2]] = tmp_path / release.extract(name, tmp_path)
        packed = pack(
            tmp_path / "out",
            published=published,
            source=read_source(tmp_path / "vllm.tar"),
            built=built,
            components=spec.components,
            build_tag="1",
            commit=commit,
        )
        with zipfile.ZipFile(packed.path) as made:
            info = f"vllm-0.23.0+g{commit[:9]}.dist-info"
            omitted = {name for name in release.namelist() if (it := owner_of(name, spec.components)) and it.how == "omitted"}
            expected = {name.replace("vllm-0.23.0.dist-info", info) for name in release.namelist()} - omitted
            assert set(made.namelist()) == expected
            assert packed.differing == ["vllm/_version.py"]
            ours, theirs = (requirements(it.read(f"{at}/METADATA")) for it, at in ((made, info), (release, "vllm-0.23.0.dist-info")))
            # 0.23.0's wheel was published a second time (build tag 2) with one bound more than its source has.
            assert ours ^ theirs == {"fastapi[standard]>=0.115.0", "fastapi[standard]<0.137,>=0.115.0"}
