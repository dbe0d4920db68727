"""Where Debian packages are looked for: apt's own sources in both spellings, and what a person names."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from envbuilder.errors import FetchError
from envbuilder.store.cache import Store
from envbuilder.store.debian import DebianPackage, apt_sources, paragraphs
from envbuilder.store.mirrors import VARIABLE, fetch_packages, mirrors
from envbuilder.store.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from envbuilder.console import Console

DEB822 = """Types: deb deb-src
URIs: https://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/x.gpg

# switched off
Types: deb
URIs: https://off.example/debian
Suites: bookworm
Enabled: no

Types: deb-src
URIs: https://source.example/debian
Suites: bookworm
"""
ONE_LINE = """# deb https://comment.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] https://one.example/debian bookworm main contrib # why
deb-src https://one.example/debian bookworm main
deb cdrom:[Debian]/ bookworm main
deb file:/srv/mirror ./
"""


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    folder = tmp_path / "apt"
    (folder / "sources.list.d").mkdir(parents=True)
    (folder / "sources.list").write_text(ONE_LINE)
    (folder / "sources.list.d/debian.sources").write_text(DEB822)
    (folder / "sources.list.d/other.sources.disabled").write_text(DEB822.replace("mirror.example", "disabled.example"))
    return folder


def test_both_spellings_are_read(apt: Path) -> None:
    lines = [source.line for source in apt_sources(apt)]
    assert lines == [
        "deb [signed-by=/k.gpg] https://one.example/debian bookworm main contrib",
        "deb file:/srv/mirror ./",
        "deb [signed-by=/usr/share/keyrings/x.gpg] https://mirror.example/debian bookworm main",
        "deb [signed-by=/usr/share/keyrings/x.gpg] https://mirror.example/debian bookworm-updates main",
    ]


def test_what_a_person_names_comes_first_and_a_mirror_counts_once(apt: Path) -> None:
    found = [place.location for place in mirrors({VARIABLE: "/media/debs https://one.example/debian/"}, apt=apt)]
    assert found == ["/media/debs", "https://one.example/debian/", "file:/srv/mirror", "https://mirror.example/debian"]


def test_a_machine_without_apt_has_no_mirror(tmp_path: Path) -> None:
    assert mirrors({}, apt=tmp_path / "nothing") == ()


def test_a_continued_field_keeps_its_lines() -> None:
    assert list(paragraphs("A: 1\n 2\n\tthree\n\n\nB:\n x\n")) == [{"a": "1\n2\nthree"}, {"b": "\nx"}]


@pytest.mark.parametrize("place", ["pool/main/x", "."])
def test_packages_come_from_a_folder(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """A mirror's tree, or just a folder of packages: what an air-gapped machine has."""
    content = b"a package"
    goal = tmp_path / "mirror" / place / "x_1_all.deb"
    goal.parent.mkdir(parents=True)
    goal.write_bytes(content)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mirror"))
    package = DebianPackage(
        name="x",
        version="1",
        architecture="all",
        path="pool/main/x/x_1_all.deb",
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        layer="rootfs",
    )
    store = Store(tmp_path / "store")
    fetch_packages([package], store=store, settings=Settings(), console=console, offline=True)
    assert store.path(package.sha256, "x_1_all.deb").read_bytes() == content


def test_a_package_that_nobody_has_tells_how_to_name_a_mirror(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    package = DebianPackage(name="x", version="1", architecture="all", path="pool/x.deb", sha256="0" * 64, size=1, layer="rootfs")
    with pytest.raises(FetchError) as caught:
        fetch_packages([package], store=Store(tmp_path / "store"), settings=Settings(), console=console, offline=True)
    assert VARIABLE in caught.value.next
