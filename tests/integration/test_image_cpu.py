"""The images of target cpu in a real engine: the server in its container, a tool that starts FROM ours, and verify."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from building import LAUNCHER
from test_image_engines import dockerd  # noqa: F401 - a fixture

from envbuilder.images.engines import DockerEngine
from envbuilder.images.oci import Layout
from envbuilder.smoke import plugins, serving
from envbuilder.smoke.client import Client
from envbuilder.smoke.results import Device, ServeResult, Stage, Status
from tests.unit.images.small import wheel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from building import KilledBuild

pytestmark = [
    pytest.mark.slow,
    pytest.mark.programs,
    pytest.mark.enable_socket,
    pytest.mark.timeout(1800),
    # docker's SDK leaves sockets to the garbage collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
TOOL = """FROM {base}
USER root
COPY mytool-1.0-py3-none-any.whl /tmp/
RUN pip install --no-cache-dir --no-deps --no-index /tmp/mytool-1.0-py3-none-any.whl && rm /tmp/mytool-1.0-py3-none-any.whl
USER envbuilder
ENTRYPOINT ["mytool"]
"""


@pytest.fixture(scope="module")
def engine(dockerd: object) -> Iterator[DockerEngine]:  # noqa: F811 - the fixture
    engine = DockerEngine.connect()
    yield engine
    engine.client.close()


@pytest.fixture(scope="module")
def loaded(built_cpu: KilledBuild, engine: DockerEngine) -> dict[str, str]:
    """Hand `serve` and `quantize` to the engine; return their tags."""
    layout = Layout(built_cpu.layout.out / "image")
    tags = {}
    for image in layout.images():
        if image.name in {"serve", "quantize"}:
            tags[image.name] = f"real:{image.name}"
            engine.load(layout, image, tags[image.name])
    return tags


def test_the_server_in_its_container_says_what_it_must(
    built_cpu: KilledBuild, engine: DockerEngine, loaded: dict[str, str], tmp_path: Path
) -> None:
    """The entry point, the user, the environment and vLLM together: the canary sings, over HTTP, from inside."""
    shutil.copytree(built_cpu.layout.canary / "quantized", tmp_path / "canary")
    plugins.write(tmp_path / "plugin")
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o644))  # the container's user is not root
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["/canary", "--served-model-name", "canary", "--port", str(port), "--dtype", "bfloat16", "--max-model-len", "256"]
    arguments += ["--max-num-seqs", "2", "--enforce-eager", "--limit-mm-per-prompt", '{"image":0,"audio":0,"video":0}']
    container = engine.client.containers.run(
        loaded["serve"],
        arguments,
        detach=True,
        network_mode="host",
        shm_size="1g",
        volumes={str(tmp_path / "canary"): {"bind": "/canary", "mode": "ro"}, str(tmp_path / "plugin"): {"bind": "/plugin", "mode": "ro"}},
        environment={"PYTHONPATH": "/plugin", "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"},
    )
    try:
        with Client(f"http://127.0.0.1:{port}", "canary", timeout_s=120) as client:
            begun = time.monotonic()
            while not client.ready():
                container.reload()
                assert container.status in {"created", "running"}, container.logs(tail=30).decode()
                assert time.monotonic() - begun < 900, container.logs(tail=30).decode()
                time.sleep(1)
            result = ServeResult(serve=Stage(status=Status.PASSED), decode=Stage(status=Status.NOT_RUN), device=Device.CPU)
            assert serving.decode(result, client, remedy="").decode.status is Status.PASSED
        assert _listening(port) == {"127.0.0.1"}
        assert container.exec_run("id -u").output.strip() == b"1000"
    finally:
        container.remove(force=True)


def _listening(port: int) -> set[str]:
    """Return the addresses on which somebody listens at a port (proc(5), /proc/net/tcp; state 0A)."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}", encoding="ascii").readlines()[1:]]  # noqa: SIM115, PTH123
    found = {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}
    return {".".join(str(byte) for byte in bytes.fromhex(address)[::-1]) if len(address) == 8 else address for address in found}


def test_a_tool_starts_from_ours(engine: DockerEngine, loaded: dict[str, str], tmp_path: Path) -> None:
    """The worked example of docs/images.md: pip installs into our environment, and the tool sees llmcompressor."""
    code = b"import importlib.metadata\n\n\ndef main():\n    print(importlib.metadata.version('llmcompressor'))\n"
    content = wheel("mytool", {"mytool.py": code}, info={"entry_points.txt": b"[console_scripts]\nmytool = mytool:main\n"})
    (tmp_path / "mytool-1.0-py3-none-any.whl").write_bytes(content)
    (tmp_path / "Dockerfile").write_text(TOOL.format(base=loaded["quantize"]))
    argv = ["docker", "build", "--network", "none", "--pull=false", "--tag", "tool", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "DOCKER_BUILDKIT": "0"})
    assert done.returncode == 0, done.stdout + done.stderr
    said = engine.client.containers.run("tool", network_mode="none", remove=True).decode().strip()
    held = engine.client.images.get(loaded["quantize"]).labels["envbuilder.version.llmcompressor"]
    assert said == held


def test_what_was_proved_together_is_not_replaced(engine: DockerEngine, loaded: dict[str, str]) -> None:
    """A tool that asks for another torch gets an error when its image is built, not a broken server."""
    command = ["sh", "-c", "pip install --no-index 'torch==1.0' 2>&1; true"]
    said = engine.client.containers.run(loaded["quantize"], command, network_mode="none", remove=True).decode()
    assert "torch" in said
    assert "conflict" in said or "No matching distribution" in said


def test_nothing_is_setuid_and_no_setting_of_ours_is_left(engine: DockerEngine, loaded: dict[str, str]) -> None:
    look = "find / -xdev -perm /6000 -type f; find /etc/apt/sources.list /etc/apt/sources.list.d /etc/pip.conf /root/.netrc -type f; env"
    said = engine.client.containers.run(
        loaded["serve"], ["-c", look], entrypoint="sh", user="root", network_mode="none", remove=True, stderr=False
    ).decode()
    lines = [line for line in said.splitlines() if "=" not in line]
    assert lines == []
    assert "INDEX_URL" not in said
    assert "CA_BUNDLE" not in said


def test_verify_finds_the_images_to_be_their_lock_s(built_cpu: KilledBuild) -> None:
    done = subprocess.run([LAUNCHER, "verify", built_cpu.layout.out, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert {check["status"] for subject in document["subjects"] for check in subject["checks"]} == {"pass"}
    assert {subject["name"] for subject in document["subjects"]} >= {"base", "serve", "quantize", "dev", "envs/serve", "provenance.json"}
