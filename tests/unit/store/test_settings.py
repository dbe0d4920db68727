"""Every place that pip or uv was told of must be tried, and none that they were told to leave out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from envbuilder.errors import ConfigurationError
from envbuilder.store.settings import Place, Settings, read_settings, uv_arguments

if TYPE_CHECKING:
    from collections.abc import Mapping

A, B, C, D = (f"https://{name}.invalid/simple" for name in "abcd")

# What pip itself makes of its files and variables, asked of pip for many surroundings at once: to start it takes long.
PIP = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
from pip._internal.commands import create_command
answers = []
for surroundings in json.load(sys.stdin):
    os.environ.clear()
    os.environ.update(surroundings)
    values = create_command("install").parser.get_default_values()
    answers.append({key: getattr(values, key) for key in ("index_url", "extra_index_urls", "find_links", "no_index", "cert", "proxy")})
json.dump(answers, sys.stdout)
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Surroundings with a home and nothing set; the machine's own folders are empty ones."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "home").mkdir()
    return {"HOME": str(tmp_path / "home"), "XDG_CONFIG_DIRS": str(tmp_path / "etc")}


@pytest.fixture(autouse=True)
def _no_file_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """/etc/pip.conf and /etc/uv/uv.toml are the machine's: a test must not see what its owner set."""
    real = Path.is_file
    mine = {"/etc/pip.conf", "/etc/uv/uv.toml", str(Path(sys.base_prefix) / "pip.conf")}
    monkeypatch.setattr(Path, "is_file", lambda self: str(self) not in mine and real(self))


def conf(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def found(env: Mapping[str, str]) -> dict[str, object]:
    settings = read_settings(env)
    return {
        "find_links": [place.location for place in settings.find_links],
        "indexes": [place.location for place in settings.indexes],
        "default": settings.default_index,
    }


def expect(*indexes: str, find_links: tuple[str, ...] = (), default: bool = True) -> dict[str, object]:
    return {"find_links": list(find_links), "indexes": list(indexes), "default": default}


def test_nothing_set_means_the_default_index(env: dict[str, str]) -> None:
    assert found(env) == expect()
    settings = read_settings(env)
    assert [place.setting for place in settings.all_indexes] == ["the default index"]


# -- pip ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PIP_INDEX_URL": A}, expect(A, default=False)),
        ({"PIP_EXTRA_INDEX_URL": f"{A} {B}"}, expect(A, B)),
        ({"PIP_INDEX_URL": A, "PIP_EXTRA_INDEX_URL": f"{B}\n{C}"}, expect(B, C, A, default=False)),
        ({"PIP_FIND_LINKS": "/wheels https://a.invalid/page.html"}, expect(find_links=("/wheels", "https://a.invalid/page.html"))),
        ({"PIP_NO_INDEX": "1", "PIP_INDEX_URL": A, "PIP_FIND_LINKS": "/w"}, expect(find_links=("/w",), default=False)),
        ({"PIP_NO_INDEX": "0", "PIP_INDEX_URL": A}, expect(A, default=False)),
        ({"PIP_INDEX_URL": ""}, expect()),
        ({"PIP_INDEX_URL": "file:///srv/simple"}, expect("file:///srv/simple", default=False)),
        ({"PIP_INDEX_URL": A, "PIP_EXTRA_INDEX_URL": A + "/"}, expect(A + "/", default=False)),
    ],
)
def test_pips_variables(env: dict[str, str], variables: dict[str, str], expected: dict[str, object]) -> None:
    assert found({**env, **variables}) == expected


CASES = {
    "user file": ({"home/.config/pip/pip.conf": f"[global]\nindex-url = {A}\nextra-index-url =\n    {B}\n    {C}\n"}, {}),
    "legacy user file": ({"home/.pip/pip.conf": f"[global]\nindex_url = {A}\n"}, {}),
    "new user file over the legacy one": (
        {"home/.pip/pip.conf": f"[global]\nindex-url = {A}\n", "home/.config/pip/pip.conf": f"[global]\nindex-url = {B}\n"},
        {},
    ),
    "user over machine": (
        {"etc/pip/pip.conf": f"[global]\nindex-url = {A}\nfind-links = /w\n", "home/.config/pip/pip.conf": f"[global]\nindex-url = {B}\n"},
        {},
    ),
    "the install section counts above global, whichever file it stands in": (
        {"etc/pip/pip.conf": f"[install]\nindex-url = {A}\n", "home/.config/pip/pip.conf": f"[global]\nindex-url = {B}\n"},
        {},
    ),
    "a section of another command does not count": ({"home/.config/pip/pip.conf": f"[list]\nindex-url = {A}\n"}, {}),
    "variable over file": ({"home/.config/pip/pip.conf": f"[install]\nindex-url = {A}\n"}, {"PIP_INDEX_URL": B}),
    "a chosen file in place of the user's": (
        {"home/.config/pip/pip.conf": f"[global]\nindex-url = {A}\n", "chosen.conf": f"[global]\nextra-index-url = {B}\n"},
        {"PIP_CONFIG_FILE": "{tmp}/chosen.conf"},
    ),
    "a chosen file over the machine's": (
        {"etc/pip/pip.conf": f"[global]\nindex-url = {A}\n", "chosen.conf": f"[global]\nindex-url = {B}\n"},
        {"PIP_CONFIG_FILE": "{tmp}/chosen.conf"},
    ),
    "a chosen file that is not there": (
        {"home/.config/pip/pip.conf": f"[global]\nindex-url = {A}\n"},
        {"PIP_CONFIG_FILE": "{tmp}/none.conf"},
    ),
    "no file at all": ({"home/.config/pip/pip.conf": f"[global]\nindex-url = {A}\n"}, {"PIP_CONFIG_FILE": os.devnull}),
    "of several machine folders the last one wins": (
        {"etc/pip/pip.conf": f"[global]\nindex-url = {A}\n", "etc2/pip/pip.conf": f"[global]\nindex-url = {B}\n"},
        {"XDG_CONFIG_DIRS": "{tmp}/etc:{tmp}/etc2"},
    ),
    "certificates and proxy": ({"home/.config/pip/pip.conf": "[global]\ncert = /ca.pem\nproxy = http://p:1\n"}, {}),
    "no index, from a file": ({"home/.config/pip/pip.conf": "[global]\nno-index = yes\nfind-links = /w\n"}, {}),
    "another home for settings": ({"xdg/pip/pip.conf": f"[global]\nindex-url = {A}\n"}, {"XDG_CONFIG_HOME": "{tmp}/xdg"}),
    "a percent sign": ({"home/.config/pip/pip.conf": "[global]\nindex-url = https://u:p%40@a.invalid/simple\n"}, {}),
}


@dataclass(frozen=True)
class Asked:
    """A case's surroundings, and what pip made of them."""

    env: dict[str, str]
    answer: dict[str, Any]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Asked]:
    surroundings = []
    for files, variables in CASES.values():
        folder = tmp_path_factory.mktemp("case")
        for path, text in files.items():
            conf(folder / path, text)
        env = {"HOME": str(folder / "home"), "XDG_CONFIG_DIRS": str(folder / "etc")}
        surroundings.append(env | {name: value.format(tmp=folder) for name, value in variables.items()})
    child = subprocess.run([sys.executable, "-c", PIP], input=json.dumps(surroundings), capture_output=True, text=True, check=False)
    if "No module named 'pip'" in child.stderr:
        pytest.skip("the tests' environment has no pip to ask")
    assert child.returncode == 0, child.stderr
    answers = zip(surroundings, json.loads(child.stdout), strict=True)
    return dict(zip(CASES, (Asked(env, answer) for env, answer in answers), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "-"))
def test_pips_files_are_read_as_pip_reads_them(asked: dict[str, Asked], case: str) -> None:
    """What is true is not in a table of ours: pip itself is asked, in the same surroundings."""
    theirs, machines_own = asked[case].answer, machine_wide()
    ours = read_settings(asked[case].env)
    default = Settings().all_indexes[-1].location.rstrip("/")
    main = [] if theirs["no_index"] or theirs["index_url"] == default else [theirs["index_url"]]
    extra = [] if theirs["no_index"] else [it for it in theirs["extra_index_urls"] if it not in machines_own]
    assert [place.location for place in ours.indexes] == [*extra, *main]
    assert [place.location for place in ours.find_links] == [it for it in theirs["find_links"] if it not in machines_own]
    assert ours.default_index == (not theirs["no_index"] and not main)
    assert ours.proxy == (theirs["proxy"] or None)
    if "cert" in "".join(CASES[case][0].values()):
        assert ours.ca_bundle == theirs["cert"]


def machine_wide() -> set[str]:
    """What stands in this machine's /etc/pip.conf: pip sees it, this test's view of the machine does not."""
    path = Path("/etc/pip.conf")
    return set(path.read_text().split()) if path.exists() else set()


def test_a_broken_file_is_named(tmp_path: Path, env: dict[str, str]) -> None:
    path = conf(tmp_path / "home/.config/pip/pip.conf", "index-url = without a section\n")
    with pytest.raises(ConfigurationError, match="not a configuration of pip") as caught:
        read_settings(env)
    assert str(path) in caught.value.what
    assert "pip config debug" in caught.value.next


# -- uv ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"UV_INDEX_URL": A}, expect(A, default=False)),
        ({"UV_DEFAULT_INDEX": A, "UV_INDEX_URL": B}, expect(A, default=False)),
        ({"UV_INDEX": f"{A} {B}", "UV_EXTRA_INDEX_URL": C}, expect(A, B, C)),
        ({"UV_INDEX": f"mirror={A}", "UV_DEFAULT_INDEX": f"main={B}"}, expect(A, B, default=False)),
        ({"UV_INDEX": f"{A}?token=a=b"}, expect(f"{A}?token=a=b")),
        ({"UV_FIND_LINKS": "/one,/two with space"}, expect(find_links=("/one", "/two with space"))),
        ({"UV_NO_INDEX": "1", "UV_INDEX": A, "UV_FIND_LINKS": "/w"}, expect(find_links=("/w",), default=False)),
        ({"UV_NO_INDEX": "false", "UV_INDEX": A}, expect(A)),
        (
            {"UV_INDEX": f"My-Mirror.1={A}", "UV_INDEX_MY_MIRROR_1_USERNAME": "me", "UV_INDEX_MY_MIRROR_1_PASSWORD": "p@ss/w"},
            expect("https://me:p%40ss%2Fw@a.invalid/simple"),
        ),
        ({"UV_INDEX": f"m={A}", "UV_INDEX_M_PASSWORD": "token"}, expect("https://:token@a.invalid/simple")),
        (
            {"UV_INDEX": "m=https://own@a.invalid/simple", "UV_INDEX_M_USERNAME": "other"},
            expect("https://own@a.invalid/simple"),
        ),
    ],
)
def test_uvs_variables(env: dict[str, str], variables: dict[str, str], expected: dict[str, object]) -> None:
    assert found({**env, **variables}) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f'[[index]]\nurl = "{A}"\n[[index]]\nname = "x"\nurl = "{B}"\ndefault = true\n', expect(A, B, default=False)),
        (f'index-url = "{A}"\nextra-index-url = ["{B}"]\n', expect(A, B, default=False)),
        (f'[pip]\nextra-index-url = ["{B}"]\nfind-links = ["/w"]\n', expect(B, find_links=("/w",))),
        ('find-links = ["/one", "/two"]\n', expect(find_links=("/one", "/two"))),
        (f'no-index = true\n[[index]]\nurl = "{A}"\n', expect(default=False)),
        ('index = "nonsense"\nextra-index-url = 7\npip = 3\n[[sources]]\n', expect()),
    ],
)
def test_uvs_file(tmp_path: Path, env: dict[str, str], text: str, expected: dict[str, object]) -> None:
    conf(tmp_path / "home/.config/uv/uv.toml", text)
    assert found(env) == expected


def test_the_stronger_source_of_uv_is_tried_first(tmp_path: Path, env: dict[str, str]) -> None:
    conf(tmp_path / "etc/uv/uv.toml", f'[[index]]\nurl = "{C}"\n')
    conf(tmp_path / "home/.config/uv/uv.toml", f'[[index]]\nurl = "{B}"\n')
    assert found({**env, "UV_INDEX": A}) == expect(A, B, C)


@pytest.mark.parametrize("where", ["variable", "user", "machine"])
def test_no_index_in_any_source_of_uv_means_none_at_all(tmp_path: Path, env: dict[str, str], where: str) -> None:
    """Someone who forbids indexes must not find one asked because another file names it."""
    conf(tmp_path / "etc/uv/uv.toml", "no-index = true\n" if where == "machine" else f'[[index]]\nurl = "{C}"\n')
    conf(tmp_path / "home/.config/uv/uv.toml", "no-index = true\n" if where == "user" else f'[[index]]\nurl = "{B}"\n')
    assert found({**env, **({"UV_NO_INDEX": "true"} if where == "variable" else {"UV_INDEX": A})}) == expect(default=False)


def test_a_chosen_file_of_uv_is_read_alone_and_none_if_so_wished(tmp_path: Path, env: dict[str, str]) -> None:
    conf(tmp_path / "home/.config/uv/uv.toml", f'[[index]]\nurl = "{A}"\n')
    env["UV_CONFIG_FILE"] = str(conf(tmp_path / "chosen.toml", f'[[index]]\nurl = "{B}"\n'))
    assert found(env) == expect(B)
    assert found({**env, "UV_NO_CONFIG": "1"}) == expect()
    assert found({**env, "UV_NO_CONFIG": "0"}) == expect(B)


@pytest.mark.parametrize("text", ["index = ", None])
def test_a_file_of_uv_that_cannot_be_read_is_named(tmp_path: Path, env: dict[str, str], text: str | None) -> None:
    path = tmp_path / "chosen.toml"
    if text:
        conf(path, text)
    with pytest.raises(ConfigurationError, match="not a configuration of uv") as caught:
        read_settings({**env, "UV_CONFIG_FILE": str(path)})
    assert str(path) in caught.value.what


def test_an_explicit_index_gives_files_but_takes_no_part_in_resolving(tmp_path: Path, env: dict[str, str]) -> None:
    """Uv's `explicit`: a CUDA index must not come to offer its torch where a CPU one is asked for."""
    conf(tmp_path / "home/.config/uv/uv.toml", f'[[index]]\nurl = "{A}"\nexplicit = true\n')
    settings = read_settings(env)
    assert A in {place.location for place in settings.all_indexes}
    assert A not in uv_arguments(settings)[0]


# -- both --------------------------------------------------------------------------------------------------------


def test_both_are_heard_and_either_may_replace_the_default_index(env: dict[str, str]) -> None:
    assert found({**env, "UV_INDEX": A, "PIP_EXTRA_INDEX_URL": B}) == expect(A, B)
    assert found({**env, "UV_INDEX": A, "PIP_INDEX_URL": B}) == expect(A, B, default=False)
    assert found({**env, "UV_DEFAULT_INDEX": A, "PIP_EXTRA_INDEX_URL": B}) == expect(A, B, default=False)
    assert found({**env, "UV_FIND_LINKS": "/same", "PIP_FIND_LINKS": "/same /other"}) == expect(find_links=("/same", "/other"))


@pytest.mark.parametrize(
    ("variables", "bundle"),
    [
        ({"PIP_CERT": "/pip", "SSL_CERT_FILE": "/ssl"}, "/pip"),
        ({"SSL_CERT_FILE": "/ssl", "REQUESTS_CA_BUNDLE": "/requests"}, "/ssl"),
        ({"REQUESTS_CA_BUNDLE": "/requests"}, "/requests"),
        ({"CURL_CA_BUNDLE": "/curl"}, "/curl"),
        ({}, None),
    ],
)
def test_certificates(env: dict[str, str], variables: dict[str, str], bundle: str | None) -> None:
    assert read_settings({**env, **variables}).ca_bundle == bundle


@pytest.mark.parametrize("name", ["PIP_INDEX_URL", "UV_INDEX", "PIP_FIND_LINKS"])
def test_an_address_that_is_none_names_its_setting(env: dict[str, str], name: str) -> None:
    with pytest.raises(ConfigurationError, match="a setting holds no address") as caught:
        read_settings({**env, name: "https://[half-a-bracket/simple"})
    assert name in caught.value.why


def test_a_user_without_a_home_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """`docker run --user 12345`: no HOME, and no entry in the list of users."""

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    assert found({"XDG_CONFIG_DIRS": "/nonexistent"}) == expect()


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://user:s3cret@a.invalid:8443/simple?x=1", "https://****@a.invalid:8443/simple?x=1"),
        ("https://t0ken@a.invalid/simple", "https://****@a.invalid/simple"),
        ("https://:s3cret@a.invalid/simple", "https://****@a.invalid/simple"),
        (A, A),
        ("/a folder/with@sign", "/a folder/with@sign"),
    ],
)
def test_credentials_are_never_shown(location: str, shown: str) -> None:
    assert Place(location=location, setting="x").shown == shown


# -- in uv's words -----------------------------------------------------------------------------------------------


def places(*locations: str) -> tuple[Place, ...]:
    return tuple(Place(location=location, setting="x") for location in locations)


def test_uv_is_told_of_every_place_and_lets_the_best_version_win() -> None:
    """By uv's own rule the first index that knows a name hides all others; pip's users expect the best of all."""
    options, variables = uv_arguments(
        Settings(find_links=places("/w"), indexes=places(A, B), default_index=False, ca_bundle="/ca", proxy="http://p")
    )
    assert options == ["--find-links", "/w", "--index", B, "--index", A, "--default-index", B, "--index-strategy", "unsafe-best-match"]
    assert variables == {"SSL_CERT_FILE": "/ca", "ALL_PROXY": "http://p"}


def test_without_any_index_uv_is_told_so() -> None:
    """Left to itself it would ask the default one."""
    assert uv_arguments(Settings(find_links=places("/w"), default_index=False)) == (["--find-links", "/w", "--no-index"], {})
