from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest
import uv as package

from envbuilder import uv
from envbuilder.errors import ProgramError

FAKE = """#!/usr/bin/env python3
import json, os, sys
print(json.dumps({"argv": sys.argv[1:], "env": dict(os.environ)}))
"""


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in uv's place that tells how it was called."""
    program = tmp_path / "uv"
    program.write_text(FAKE.replace("/usr/bin/env python3", sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(uv, "uv_program", lambda: str(program))
    return tmp_path / "cache"


def test_no_setting_of_the_user_reaches_uv_unless_we_hand_it_on(seen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """UV_INDEX_URL or a uv.toml would make the same call mean something else on each machine."""
    for name in ("UV_INDEX_URL", "UV_OFFLINE", "PIP_INDEX_URL", "PYTHONPATH", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "misleading")
    monkeypatch.setenv("HTTPS_PROXY", "kept")
    call = json.loads(uv.run_uv(["pip", "list"], cache=seen, what="asking", capture=True).stdout)
    assert call["argv"] == ["pip", "list", "--no-config"]
    assert "misleading" not in call["env"].values()
    assert call["env"]["UV_CACHE_DIR"] == str(seen)
    assert call["env"]["UV_PYTHON_DOWNLOADS"] == "never", "an interpreter of unknown origin must not come in by the back door"
    assert call["env"]["HTTPS_PROXY"] == "kept"


def test_what_we_hand_on_arrives(seen: Path) -> None:
    call = json.loads(uv.run_uv(["x"], cache=seen, what="asking", capture=True, variables={"SSL_CERT_FILE": "/ca"}).stdout)
    assert call["env"]["SSL_CERT_FILE"] == "/ca"


def test_a_uv_that_is_gone_is_said_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise FileNotFoundError("/x/uv")

    monkeypatch.setattr(package, "find_uv_bin", missing)
    uv.uv_program.cache_clear()
    with pytest.raises(ProgramError, match="not installed beside envbuilder") as caught:
        uv.uv_program()
    assert "bin/envbuilder" in caught.value.next


def test_the_uv_that_is_run_is_the_one_of_the_lock() -> None:
    uv.uv_program.cache_clear()
    assert Path(uv.uv_program()).is_file()
