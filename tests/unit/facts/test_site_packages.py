from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envbuilder.facts.site_packages import distributions, find_site, installed, torch_build
from envbuilder.facts.vllm_source import vllm_module_of
from envbuilder.torch_version import TorchBuild

if TYPE_CHECKING:
    from pathlib import Path


def torch(site: Path, text: str | bytes) -> Path:
    (site / "torch").mkdir(exist_ok=True)
    (site / "torch" / "version.py").write_bytes(text if isinstance(text, bytes) else text.encode())
    return site


def registry(site: Path, text: str, *modules: str) -> Path:
    models = site / "vllm" / "model_executor" / "models"
    models.mkdir(parents=True)
    (models / "registry.py").write_text(text)
    for module in modules:
        (models / module).mkdir() if module.endswith("/") else (models / f"{module}.py").write_text("")
    return site


@pytest.mark.parametrize("folder", ["an environment", "[odd] *name"])
def test_an_environments_site_is_found_whatever_its_folder_is_called(tmp_path: Path, folder: str) -> None:
    site = tmp_path / folder / "lib" / "python3.12" / "site-packages"
    site.mkdir(parents=True)
    assert find_site(tmp_path / folder) == site
    assert find_site(tmp_path) is None
    assert find_site(tmp_path / "none") is None


def test_distributions_are_named_canonically(tmp_path: Path) -> None:
    for name in ("Compressed_Tensors-0.17.0", "ruamel.yaml-0.18", "torch-2.13.0+cpu", "zope.interface-7.0.post1"):
        (tmp_path / f"{name}.dist-info").mkdir()
    (tmp_path / "torch").mkdir()
    (tmp_path / "old.egg-info").mkdir()
    assert distributions(tmp_path) == {
        "compressed-tensors": "0.17.0",
        "ruamel-yaml": "0.18",
        "torch": "2.13.0+cpu",
        "zope-interface": "7.0.post1",
    }


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("__version__ = '2.11.0+cu130'\ndebug = False\ncuda: str | None = '13.0'\n", TorchBuild(version="2.11.0+cu130", cuda="13.0")),
        (
            "from typing import Optional\n__all__ = []\n__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n",
            TorchBuild(version="2.13.0+cpu", cuda=None),
        ),
        ("__version__ = '2.5.0'\n", TorchBuild(version="2.5.0", cuda=None)),
        ("cuda = '13.0'\n", None),
        ("__version__ = compute()\n", None),
        ("def broken(:\n", None),
        (
            "__version__ = '2.11.0+rocm6.4'\ncuda: str | None = None\nhip: str | None = '6.4'\n",
            TorchBuild(version="2.11.0+rocm6.4", cuda=None, hip="6.4"),
        ),
        ("__version__ = '2'\ncu", TorchBuild(version="2", cuda=None)),
        ("", None),
    ],
)
def test_torch_says_itself_which_build_it_is(tmp_path: Path, text: str, build: TorchBuild | None) -> None:
    assert torch_build(torch(tmp_path, text)) == build


def test_without_torch_there_is_no_build(tmp_path: Path) -> None:
    assert torch_build(tmp_path) is None


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(payload=st.binary(max_size=80))
def test_no_content_is_fatal(tmp_path: Path, payload: bytes) -> None:
    """A damaged environment is what a doctor is called for."""
    torch_build(torch(tmp_path, payload))


@pytest.mark.parametrize(
    ("entry", "modules", "found"),
    [
        ('"A": ("a", "A")', ("a",), "a"),
        ('"A": ("a", "A", "more")', ("a",), "a"),
        ('"A": ("package", "A")', ("package/",), "package"),
        ('"A": ("gone", "A")', ("a",), None),
        ('"B": ("a", "B")', ("a",), None),
        ('"A": "a"', ("a",), None),
        ('**other, "A": ("a", "A")', ("a",), "a"),
        ('"A": (name, "A")', ("a",), None),
    ],
)
def test_the_registry_is_read_without_importing_it(tmp_path: Path, entry: str, modules: tuple[str, ...], found: str | None) -> None:
    """Importing vllm takes 9 s and needs a torch that fits; the dictionary in its source is enough."""
    text = f"import torch\nother = {{}}\n_MODELS = {{**other, **{{{entry}}}}}\n"
    assert vllm_module_of(registry(tmp_path, text, *modules), "A") == found


@pytest.mark.parametrize("text", ["", "def broken(", "x = {1: 2}"])
def test_an_unreadable_registry_knows_nothing(tmp_path: Path, text: str) -> None:
    assert vllm_module_of(registry(tmp_path, text), "A") is None


def test_the_owners_of_a_path_are_all_that_recorded_it(tmp_path: Path) -> None:
    records = {
        "a_one-1": 'a/__init__.py,sha256=x,1\nshared.py,sha256=x,1\na/__pycache__/__init__.cpython-311.pyc,,\n"odd, name.py",,\n',
        "b-1": "shared.py,sha256=y,1\n../../../bin/b,,\n\n",
    }
    for name, text in records.items():
        (tmp_path / f"{name}.dist-info").mkdir()
        (tmp_path / f"{name}.dist-info" / "RECORD").write_text(text)
    (tmp_path / "without-1.dist-info").mkdir()
    found = installed(tmp_path)
    assert found.shared == {"shared.py": ("a-one", "b")}
    assert found.files == 4
    assert found.bytes == 3, "a file that has no size in its RECORD counts for nothing, a compiled one not at all"
