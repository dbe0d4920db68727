"""What is saved is given away: it names no person, no machine and no secret, and what checks look at stays."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from snapshots import H100, HEALTHY, SPARK, variables

from envbuilder.doctor.examine import examine
from envbuilder.facts import machine, redact, toolchain
from envbuilder.facts.codec import from_json, to_json
from envbuilder.facts.model import Snapshot
from envbuilder.facts.world import World

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def alice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of one person, whoever runs the tests."""
    monkeypatch.setenv("HOME", "/root")
    monkeypatch.setattr(redact, "_people", lambda: frozenset({"alice"}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HF_TOKEN=hf_abcdefghijklmnop", "HF_TOKEN=<token>"),
        ("https://bob:s3cret@index.example/x", "https://<credentials>@index.example/x"),
        ("https://bob:p@ss@index.example/x", "https://<credentials>@index.example/x"),
        ("https://bob:p/ss@index.example/x", "https://<credentials>@index.example/x"),
        ("https://glue@index.example/x", "https://<credentials>@index.example/x"),
        ("redis://:pass@cache.example", "redis://<credentials>@cache.example"),
        ("bob:pass@proxy.example:3128", "<credentials>@proxy.example:3128"),
        ("http://proxy.example:3128/a@b", "http://proxy.example:3128/a@b"),
        ("vllm/vllm-openai:v0.23.0@sha256:0123", "vllm/vllm-openai:v0.23.0@sha256:0123"),
        ("git+https://code.example/x.git@v1", "git+https://code.example/x.git@v1"),
        ("/home/alice/.venv/bin", "/home/<user>/.venv/bin"),
        ("/data/home/bob/x", "/data/home/<user>/x"),
        ("/mnt/c/Users/John Doe/x", "/mnt/c/Users/<user>/x"),
        (r"C:\Users\John Doe\x", r"C:\Users\<user>\x"),
        ("connected to 10.1.2.3:8000", "connected to <address>:8000"),
        ("192.168.1.7 and 172.16.0.9.", "<address> and <address>."),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("host ip-10-1-2-3 is up", "host <address> is up"),
        ("fd00::1:2", "<address>"),
        ("addr:fd00::1:2", "addr:<address>"),
        ("[2001:db8::1]:8000", "[<address>]:8000"),
        ("from fe80::1a2b:3cff:fe4d:5e6f.", "from <address>."),
        ("2001:db8:0:0:0:0:0:1.", "<address>."),
        ("::1 c10::ad std::__1::a at::be", "::1 c10::ad std::__1::a at::be"),
        ("nvidia-cublas 13.1.0.3", "nvidia-cublas 13.1.0.3"),
        ("nvidia-curand 10.4.0.35", "nvidia-curand 10.4.0.35"),
        ("nvidia-cudnn-cu13==9.19.0.56", "nvidia-cudnn-cu13==9.19.0.56"),
        ("1.2.3.4", "1.2.3.4"),
        ("/opt/tensorrt/TensorRT-10.4.0.26/lib", "/opt/tensorrt/TensorRT-10.4.0.26/lib"),
        ("GPU-0c1f2e3d-1111-2222-3333-444455556666", "<gpu-uuid>"),
        ("GPU-0c1f2e3d,1", "<gpu-uuid>,1"),
        ("GPU-accelerated", "GPU-accelerated"),
        ("link 48:b0:2d:11:22:33 up", "link <mac> up"),
        ("48-b0-2d-11-22-33", "<mac>"),
        ("2025-09-10-13-50-03", "2025-09-10-13-50-03"),
        ("enx001122334455, wlx0011223344ff", "enx<mac>, wlx<mac>"),
        ("enp1s0f0np0", "enp1s0f0np0"),
        ('DGX_SERIAL_NUMBER="1983625000123"', 'DGX_SERIAL_NUMBER="<serial>"'),
        ("Authorization: Bearer abcdef123456", "Authorization: Bearer <secret>"),
        ("Authorization: Basic YTpi", "Authorization: Basic <secret>"),
        ("https://x.example/simple?token=abc&a=1", "https://x.example/simple?token=<secret>&a=1"),
        ("/etc/passwd: there is no such folder", "/etc/passwd: there is no such folder"),
        ("000f:01:00.0", "000f:01:00.0"),
        ("driver 580.95.05 kernel 6.17.0-1032-nvidia", "driver 580.95.05 kernel 6.17.0-1032-nvidia"),
    ],
)
def test_what_names_someone_goes_and_versions_stay(text: str, expected: str) -> None:
    assert redact.text(text) == expected


FRAGMENTS = st.sampled_from(
    [
        *"/:@.=-<> ,'\"[]",
        "://",
        "token",
        "token=",
        "Authorization: ",
        "Bearer ",
        "/home/",
        "alice",
        "<user>",
        "10.1.2.3",
        "fd00::",
        "enx",
        "0011",
        "a:b@",
    ]
)


@given(st.one_of(st.text(max_size=300), st.lists(FRAGMENTS, max_size=12).map("".join)))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    """A snapshot is redacted when it is saved, and again when it is replayed and printed."""
    for redacted in (redact.text, redact.said, redact.tree, lambda value: redact.variable("VLLM_HOST_IP", value)):
        assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize(
    "piece", ["1.", "1-", "://a:", "a@", "a:b@", "fd00:", "00:", "/home/", "token ", "eyJaaaaaaaaaaa.", "a", " ", "ab-", "GPU-"]
)
@pytest.mark.timeout(60)
def test_a_long_line_takes_no_longer_than_its_length(piece: str) -> None:
    """A line of a log may be a megabyte of digits; looked through from each of them, it took minutes."""
    redact.tree(piece * 20_000, "nvml")


def test_ones_own_home_becomes_a_tilde_that_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    for home in ("/home/alice", "/data/alice"):
        monkeypatch.setenv("HOME", home)
        assert redact.text(f"envbuilder align --env {home}/.venv") == "envbuilder align --env ~/.venv"
    assert redact.text("/srv/data/alice/x") == "/srv/data/alice/x", "no other's folder is this home"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("VLLM_HOST_IP", "10.1.2.3", "<address>"),
        ("PIP_TRUSTED_HOST", "pypi.corp.example 10.1.2.3", "<host> <address>"),
        ("RAY_ADDRESS", "head-7:6379", "<host>:6379"),
        ("RAY_ADDRESS", "auto", "auto"),
        ("VLLM_HOST_IP", "127.0.0.1", "127.0.0.1"),
        ("DOCKER_HOST", "unix:///var/run/docker.sock", "unix:///var/run/docker.sock"),
        ("DOCKER_HOST", "ssh://alice@box", "ssh://<credentials>@box"),
        ("UV_INDEX_CORP_USERNAME", "alice", "<set>"),
        ("UV_INDEX_CORP_PASSWORD", "p", "<set>"),
        ("HF_TOKEN", "<file>", "<file>"),
        ("CUDNN_VERSION", "9.5.1.17", "9.5.1.17"),
        ("CUDA_VERSION", "12.6.2.004", "12.6.2.004"),
        ("NVIDIA_REQUIRE_CUDA", "cuda>=12.6 driver>=470", "cuda>=12.6 driver>=470"),
        ("PIP_CONSTRAINT", "torch==2.11.0", "torch==2.11.0"),
        ("LD_LIBRARY_PATH", "/usr/local/cuda-13.0/lib64", "/usr/local/cuda-13.0/lib64"),
    ],
)
def test_a_variable_says_no_more_than_checks_need(name: str, value: str, expected: str) -> None:
    assert redact.variable(name, value) == expected


# Each is put among other text; what must not be found afterwards.
SECRETS = {
    "hf_abcdefghijklmnop": "abcdefghijklmnop",
    "ghp_abcdefghijklmnopqrst": "abcdefghijklmnopqrst",
    "https://bob:p@ss/w0rd@index.example": "w0rd",
    "http://bob@index.example": "bob",
    "/home/bob/.cache": "bob",
    "/data/alice/models": "alice",
    "/mnt/alice": "alice",
    "ssh alice@box": "alice",
    "http://10.1.2.3:8000": "10.1.2.3",
    "192.168.77.5": "192.168.77.5",
    "fd00::1:2": "1:2",
    "48:b0:2d:11:22:33": "2d:11",
    "enx48b02d112233": "48b02d",
    "GPU-0c1f2e3d-1111-2222-3333-444455556666": "0c1f2e3d",
    "serial number: 1983625000123": "1983625000123",
    "password=hunter2": "hunter2",
    "Authorization: Basic YWxpY2U6eA==": "YWxpY2U6eA",
    "bob@corp.example": "bob",
}
IN_WHAT_IS_SAID = {"10.1.2.3": "10.1.2.3", "timeout of 10.1.2.3.": "10.1.2.3"}  # elsewhere four numbers may be a version
BEFORE = st.sampled_from(["", " ", "'", '"', ", ", "x=", "(", "error: ", "\n", "\t", "= "])
AFTER = st.sampled_from(["", " ", "'", '"', ", more", ")", ": refused", "\n", "\t", ";", ". It"])


def filled(kind: Any, text: str, said: str) -> Any:
    """Return a value of a model's type in which every string is `text`, and `said` in the sections of what programs say."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in {types.UnionType, typing.Union}:
        return filled(next(part for part in arguments if part is not types.NoneType), text, said)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return typing.cast("Any", kind)(
            **{name: filled(hint, said if kind is Snapshot and name in redact._SAID else text, said) for name, hint in hints.items()}
        )
    if origin is tuple:
        return (filled(arguments[0], text, said),)
    if origin is dict:
        return {"UV_CACHE_DIR": filled(arguments[1], text, said)}
    return text if kind is str else kind()


@settings(deadline=None)
@given(secret=st.sampled_from(sorted(SECRETS)), before=BEFORE, after=AFTER, other=st.sampled_from(sorted({**SECRETS, **IN_WHAT_IS_SAID})))
def test_a_secret_in_any_place_of_a_snapshot_is_not_saved(secret: str, before: str, after: str, other: str) -> None:
    """One string that is not looked through, one reader that is added and forgotten, and a report on a forum holds a password."""
    snapshot = filled(Snapshot, f"{before}{secret}{after}", f"{before}{other}{after}")
    saved = json.dumps(to_json(redact.tree(snapshot)))
    assert SECRETS[secret] not in saved
    assert {**SECRETS, **IN_WHAT_IS_SAID}[other] not in saved
    assert len(saved) > 4000, "every section is there"


@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_saved_is_judged_as_what_was_seen(name: str) -> None:
    again = from_json(json.loads(json.dumps(to_json(redact.tree(HEALTHY[name])))))
    assert [(one.check.id, one.status) for one in examine(again).findings] == [
        (one.check.id, one.status) for one in examine(HEALTHY[name]).findings
    ]


def test_versions_of_everything_stay() -> None:
    """Findings rest on them: 13.1.0.3 is a cuBLAS and no address."""
    assert SPARK.environment is not None
    assert H100.environment is not None
    for s in (SPARK, H100):
        saved = redact.tree(s)
        assert (saved.packages, saved.toolkits, saved.driver, saved.dgx) == (s.packages, s.toolkits, s.driver, s.dgx)
        assert saved.environment.distributions == s.environment.distributions
        assert saved.environment.extensions == s.environment.extensions


def test_an_interface_that_is_named_by_its_address_is_still_found(tmp_path: Path) -> None:
    """NCCL_SOCKET_IFNAME and the interface lose the same, here and on replay: else a healthy cable was an alarm."""
    (tmp_path / "sys/class/net/enx48b02d112233").mkdir(parents=True)
    (tmp_path / "sys/class/net/enx48b02d112233/operstate").write_text("up\n")
    for value in ("enx48b02d112233", "enx48b0", "enx", "=enx48b02d112233"):
        world = World(root=tmp_path, variables={"NCCL_SOCKET_IFNAME": value}, directory=tmp_path)
        seen = dataclasses.replace(SPARK, network=machine.read_network(world), variables=toolchain.read_variables(world))
        for snapshot in (seen, redact.tree(seen)):
            assert "48b0" not in json.dumps(to_json(snapshot))
            assert next(one for one in examine(snapshot).findings if one.check.id == "EB-VAR-008").status == "pass", value


def test_peoples_names_are_those_of_accounts_and_homes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that many folders have are no one's: a user called torch must not take the packages out of every path."""
    monkeypatch.undo()
    for name in ("USER", "LOGNAME", "SUDO_USER"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("USER", "carol")
    monkeypatch.setenv("SUDO_USER", "torch")
    monkeypatch.setattr(
        redact.reading, "text", lambda _: "root:x:0:0::/root:/bin/sh\ndave:x:1001:1001::/d:/bin/sh\nnobody:x:65534:1::/:/x\nbroken\n"
    )
    monkeypatch.setattr(redact.os, "listdir", lambda _: ["erin", "ubuntu"])
    redact._people.cache_clear()
    try:
        assert redact._people() == {"carol", "dave", "erin"}
    finally:
        redact._people.cache_clear()


def test_a_page_that_is_printed_keeps_paths_that_can_be_pasted() -> None:
    assert redact.text("rm -r /data/alice/x") == "rm -r /data/alice/x"
    assert redact.tree(variables(SPARK, HF_HOME="/data/alice/hf")).variables["HF_HOME"] == "/data/<user>/hf"


@pytest.mark.parametrize("rule", [*redact._RULES, *redact._ADDRESSES, *redact._ANY_ADDRESS], ids=lambda rule: rule.pattern[:30])
def test_what_a_pattern_matches_holds_one_of_its_needles(rule: redact._Rule) -> None:
    """A rule is passed over where no needle is: a match without one would be given away."""
    without_conditions = re.sub(r"\(\?=[^()]*\)", "", rule.pattern)  # matches more, and is easier to make examples of

    @given(st.data())
    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
    def matched(data: st.DataObject) -> None:
        text = data.draw(st.from_regex(without_conditions, alphabet=st.characters(max_codepoint=127)))
        assert any(text.lower().count(needle) >= rule.times for needle in rule.needles)

    matched()
