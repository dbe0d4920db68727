"""The images of target cpu in real engines: the smoke test in their containers, tools that start FROM ours, and verify."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from building import LAUNCHER
from engines import buildah_container, buildah_root
from image_trees import of_docker, of_folder, of_layout, without_docker_s

from envbuilder.images.engines import build_with
from envbuilder.smoke import children, judging, plugins, serving
from envbuilder.smoke.client import Client
from envbuilder.smoke.results import ANSWER, PROMPT, Device, Measured, ServeResult, Stage, Status, from_json
from envbuilder.store.debian import apt_sources
from tests.unit.images.small import wheel

if TYPE_CHECKING:
    from building import KilledBuild

    from envbuilder.images.engines import DockerEngine
    from envbuilder.images.oci import Layout

pytestmark = [
    pytest.mark.network,
    pytest.mark.programs,
    pytest.mark.enable_socket,
    pytest.mark.timeout(1800),
    # docker's SDK leaves sockets to the garbage collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
GUIDE = Path(__file__).parents[2] / "docs" / "images.md"
# Of a module that is compiled and imported, as Triton does with the launcher of each kernel.
EXTENSION = """#include <Python.h>
static PyObject *answer(PyObject *self, PyObject *none) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, 0}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "compiled", 0, -1, methods};
PyMODINIT_FUNC PyInit_compiled(void) { return PyModule_Create(&module); }
"""
COMPILE = (
    "gcc -O2 -shared -fPIC -I$(python -c 'import sysconfig; print(sysconfig.get_path(\"include\"))') /source/compiled.c -o compiled.so"
)


@pytest.fixture(scope="module")
def loaded(images_cpu: Layout, docker: DockerEngine) -> dict[str, str]:
    """Hand `serve` and `quantize` to the engine; return their tags."""
    tags = {name: f"real:{name}" for name in ("serve", "quantize")}
    docker.load(images_cpu, {tags[image.name]: image for image in images_cpu.images() if image.name in tags})
    return tags


@pytest.fixture(scope="module")
def quantized(docker: DockerEngine, loaded: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make and quantize the canary in a container of `quantize`; return the folder of the quantized model."""
    work = tmp_path_factory.mktemp("canary")
    work.chmod(0o777)  # the container's user is not root
    request = {"prompt": PROMPT, "answer": ANSWER, "steps": 300, "bos": True}
    (work / "request.json").write_text(json.dumps(request))
    docker.client.containers.run(
        loaded["quantize"],
        ["python", "/inside/canary.py", "/canary/request.json"],
        network_mode="none",
        environment={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        volumes={str(work): {"bind": "/canary", "mode": "rw"}, str(children.INSIDE): {"bind": "/inside", "mode": "ro"}},
        remove=True,
    )
    measured = from_json(Measured, json.loads((work / "result.json").read_bytes()))
    assert judging.judge_quantization(measured, ANSWER).problems == ()
    return work / "quantized"


def test_the_smoke_test_passes_in_the_containers(docker: DockerEngine, loaded: dict[str, str], quantized: Path, tmp_path: Path) -> None:
    """The entry point, the user, the environment and vLLM together: the canary sings, over HTTP, from inside."""
    plugins.write(tmp_path / "plugin")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["/canary", "--served-model-name", "canary", "--port", str(port), "--dtype", "bfloat16", "--max-model-len", "256"]
    arguments += ["--max-num-seqs", "2", "--enforce-eager", "--limit-mm-per-prompt", '{"image":0,"audio":0,"video":0}']
    container = docker.client.containers.run(
        loaded["serve"],
        arguments,
        detach=True,
        network_mode="host",
        shm_size="1g",
        volumes={str(quantized): {"bind": "/canary", "mode": "ro"}, str(tmp_path / "plugin"): {"bind": "/plugin", "mode": "ro"}},
        environment={"PYTHONPATH": "/plugin", "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"},
    )
    try:
        with Client(f"http://127.0.0.1:{port}", "canary", timeout_s=120) as client:
            _wait_until_ready(client, container)
            result = ServeResult(serve=Stage(status=Status.PASSED), decode=Stage(status=Status.NOT_RUN), device=Device.CPU)
            assert serving.decode(result, client, remedy="").decode.status is Status.PASSED
        assert _listening(port) == {"127.0.0.1"}
        assert container.exec_run("id -u").output.strip() == b"1000"
    finally:
        container.remove(force=True)


def _wait_until_ready(client: Client, container: Any) -> None:
    begun = time.monotonic()
    while not client.ready():
        container.reload()
        assert container.status in {"created", "running"}, container.logs(tail=30).decode()
        assert time.monotonic() - begun < 900, container.logs(tail=30).decode()
        time.sleep(1)


def _listening(port: int) -> set[str]:
    """Return the addresses on which somebody listens at a port (proc(5), /proc/net/tcp; state 0A)."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text(encoding="ascii").splitlines()[1:]]
    found = {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}
    return {".".join(str(byte) for byte in bytes.fromhex(address)[::-1]) if len(address) == 8 else address for address in found}


def test_the_guide_s_tool_starts_from_ours(docker: DockerEngine, loaded: dict[str, str], tmp_path: Path) -> None:
    """The worked example of docs/images.md, as it stands there: pip installs into our environment, and the tool sees llmcompressor."""
    code = b"import importlib.metadata\n\n\ndef main():\n    print(importlib.metadata.version('llmcompressor'))\n"
    entry = {"entry_points.txt": b"[console_scripts]\nmytool = mytool:main\n"}
    (tmp_path / "mytool-1.0-py3-none-any.whl").write_bytes(wheel("mytool", {"mytool.py": code}, info=entry))
    [example] = re.findall(r"```dockerfile\nFROM \S+\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "Dockerfile").write_text(f"FROM {loaded['quantize']}\n{example}")
    image, _ = docker.client.images.build(path=str(tmp_path), tag="real:tool", network_mode="none", rm=True)
    said = docker.client.containers.run(image.id, network_mode="none", remove=True, stderr=False).decode().strip()
    assert said == docker.client.images.get(loaded["quantize"]).labels["envbuilder.version.llmcompressor"]


def test_what_was_proved_together_is_not_replaced(docker: DockerEngine, loaded: dict[str, str]) -> None:
    """A tool that asks for another torch gets an error when its image is built, not a broken server."""
    command = ["sh", "-c", "pip install --no-index 'torch==1.0' 2>&1; true"]
    said = docker.client.containers.run(loaded["quantize"], command, network_mode="none", remove=True).decode()
    assert "torch" in said
    assert "conflict" in said or "No matching distribution" in said


def test_nothing_is_setuid_and_no_setting_of_ours_is_left(docker: DockerEngine, loaded: dict[str, str]) -> None:
    look = "find / -xdev -perm /6000 -type f; find /etc/apt/sources.list /etc/apt/sources.list.d /etc/pip.conf /root/.netrc -type f; env"
    said = docker.client.containers.run(
        loaded["serve"], ["-c", look], entrypoint="sh", user="root", network_mode="none", remove=True, stderr=False
    ).decode()
    lines = [line for line in said.splitlines() if "=" not in line]
    assert lines == []
    assert "INDEX_URL" not in said
    assert "CA_BUNDLE" not in said


def test_what_is_compiled_at_run_time_is_compiled_in_dev(images_cpu: Layout, buildah: Path, tmp_path: Path) -> None:
    """Triton compiles a module of C for each kernel: a compiler, headers that fit Python, and a folder that the user may write to."""
    source = tmp_path / "source"
    source.mkdir()  # pytest's own folder is closed to the container's user
    (source / "compiled.c").write_text(EXTENSION)
    container = buildah_container(images_cpu, "dev")
    script = f"cd ~/.cache\n{COMPILE}\npython -c 'import compiled; print(compiled.answer())'\ng++ --version | head -1\nid -u"
    answer, compiler, uid = _said("buildah", "run", "-v", f"{source}:/source:ro", container, "--", "sh", "-ec", script).splitlines()
    assert (answer, uid) == ("42", "1000")
    assert compiler.startswith("g++ (Debian 12")


def test_apt_installs_into_an_image_that_starts_from_ours(images_cpu: Layout, buildah: Path, tmp_path: Path) -> None:
    """No maintainer script made these images: apt, dpkg and the scripts of a new package must get on with what stands there.

    Where packages come from is the machine's own configuration, given for the time of the command.
    """
    lines = [it.line for it in apt_sources() if it.suite.startswith("bookworm") and "main" in it.components]
    if not lines:
        pytest.skip("apt has no source of Debian 12 here")
    (tmp_path / "sources.list").write_text("\n".join([*lines, ""]))
    settings = _said("apt-config", "dump").splitlines()
    (tmp_path / "apt.conf").write_text("\n".join(line for line in settings if line.startswith("Acquire::") and "proxy" in line.lower()))
    container = buildah_container(images_cpu, "base")
    mounts = ["-v", f"{tmp_path}/sources.list:/etc/apt/sources.list:ro", "-v", f"{tmp_path}/apt.conf:/etc/apt/apt.conf:ro"]
    # less: its scripts call update-alternatives; adduser: Perl, and accounts.
    script = (
        "dpkg --audit; apt-get update -qq; apt-get check; apt-get install -y --no-install-recommends less adduser; adduser --system tool"
    )
    command = [
        "buildah",
        "run",
        "--user",
        "root",
        *mounts,
        container,
        "--",
        "sh",
        "-ec",
        f"export DEBIAN_FRONTEND=noninteractive; {script}",
    ]
    _said(*command)
    assert _said("buildah", "run", container, "--", "sh", "-ec", "readlink -f /usr/bin/pager; id -un tool").split() == [
        "/usr/bin/less",
        "tool",
    ]


@pytest.mark.parametrize("engine", ["docker", "buildah"])
def test_engines_build_the_same_files_of_real_packages(
    engine: str, images_cpu: Layout, docker: DockerEngine, buildah: Path, tmp_path: Path
) -> None:
    """Debian's packages and torch, from our Dockerfile: hard links, names that are not ASCII, paths too long for a plain tar."""
    [image] = [image for image in images_cpu.images() if image.name == "base"]
    build_with(engine, images_cpu, image, "localhost/real:base", scratch=tmp_path / "context", log=tmp_path / "log")
    ours = of_layout(images_cpu, image)
    if engine == "docker":
        found, ours = of_docker(docker, "localhost/real:base"), without_docker_s(ours)
    else:
        found = of_folder(buildah_root("localhost/real:base"))
    assert [path for path in sorted(found.keys() | ours.keys()) if found.get(path) != ours.get(path)] == []
    assert len(ours) > 10_000


def test_verify_finds_the_images_to_be_their_lock_s(built_cpu: KilledBuild, images_cpu: Layout) -> None:
    document = json.loads(_said(LAUNCHER, "verify", built_cpu.layout.out, "--json"))
    assert {check["status"] for subject in document["subjects"] for check in subject["checks"]} == {"pass"}
    assert {subject["name"] for subject in document["subjects"]} >= {"base", "serve", "quantize", "dev", "envs/serve", "provenance.json"}


def _said(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
