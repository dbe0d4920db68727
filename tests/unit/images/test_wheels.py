"""A wheel in an image is what pip would have installed, without what pip leaves to chance."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from envbuilder.errors import VerificationError
from envbuilder.images.wheels import Wheel, shared_paths, wheel_entries
from tests.unit.images.small import wheel

if TYPE_CHECKING:
    from pathlib import Path

SITE = "opt/venv/lib/python3.11/site-packages"


def made(tmp_path: Path, content: bytes, name: str = "demo", *, without: frozenset[str] = frozenset()) -> Wheel:
    path = tmp_path / f"{name}-1.0-py3-none-any.whl"
    path.write_bytes(content)
    return Wheel(name=name, version="1.0", sha256=hashlib.sha256(content).hexdigest(), path=path, without=without)


def contents(one: Wheel) -> dict[str, bytes]:
    with ExitStack() as stack:
        return {entry.path: entry.open().read() for entry in wheel_entries(one, "3.11", stack)}


def test_files_go_where_pep_427_puts_them(tmp_path: Path) -> None:
    files = {
        "demo/__init__.py": b"",
        "demo-1.0.data/scripts/tool": b"#!python\nprint()\n",
        "demo-1.0.data/data/share/x.txt": b"x",
        "demo-1.0.data/headers/x.h": b"h",
        "demo-1.0.data/platlib/other.py": b"o",
    }
    found = contents(made(tmp_path, wheel("demo", files)))
    assert found["opt/venv/bin/tool"] == b"#!/opt/venv/bin/python\nprint()\n"
    assert found["opt/venv/share/x.txt"] == b"x"
    assert found["opt/venv/include/site/python3.11/demo/x.h"] == b"h"
    assert found[f"{SITE}/other.py"] == b"o"
    assert found[f"{SITE}/demo/__init__.py"] == b""


def test_record_names_what_was_installed(tmp_path: Path) -> None:
    """Pip uninstalls by RECORD: a program that is not in it would stay behind."""
    content = wheel(
        "demo",
        {"demo-1.0.data/scripts/tool": b"#!python\n"},
        info={"entry_points.txt": b"[console_scripts]\ndemo = demo.cli:app.run [extra]\n"},
    )
    found = contents(made(tmp_path, content))
    record = found[f"{SITE}/demo-1.0.dist-info/RECORD"].decode()
    assert "../../../bin/demo,sha256=" in record
    assert "../../../bin/tool,sha256=" in record
    assert ".data/" not in record
    assert record.splitlines() == sorted(record.splitlines(), key=lambda line: line.split(",")[0])
    assert b"from demo.cli import app\n" in found["opt/venv/bin/demo"]
    assert b"sys.exit(app.run())" in found["opt/venv/bin/demo"]


@pytest.mark.parametrize("name", ["../outside.py", "/etc/passwd", "demo-1.0.data/scripts/../../../x"])
def test_a_wheel_cannot_leave_the_environment(tmp_path: Path, name: str) -> None:
    with pytest.raises(VerificationError) as caught:
        contents(made(tmp_path, wheel("demo", {name: b""})))
    assert "leaves its folder" in caught.value.why


def test_a_wheel_that_is_none_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="cannot be read as a wheel"):
        contents(made(tmp_path, b"PK nothing"))


def test_the_loser_s_files_are_not_there(tmp_path: Path) -> None:
    """Two distributions own one path: whose it is comes from the target's rule, never from the order of layers."""
    owner = made(tmp_path, wheel("owner", {"x/shared.py": b"owner"}), "owner")
    loser = made(tmp_path, wheel("loser", {"x/shared.py": b"loser", "x/own.py": b""}), "loser")
    names = shared_paths(owner, loser)
    assert names == {"x/shared.py"}
    found = contents(Wheel(name="loser", version="1.0", sha256=loser.sha256, path=loser.path, without=names))
    assert f"{SITE}/x/shared.py" not in found
    assert f"{SITE}/x/own.py" in found
