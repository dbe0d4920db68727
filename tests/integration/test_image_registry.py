"""A real registry, Debian's docker-registry on loopback: what is sent, what goes on after a break, who is let in."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import requests

from envbuilder.build.image_inputs import compiled_of, hashes_of, target_document
from envbuilder.build.image_stage import source_of_lock
from envbuilder.cli import main
from envbuilder.console import Console
from envbuilder.errors import VerificationError
from envbuilder.images.fleet import tags_of, take
from envbuilder.images.inputs import IMAGES
from envbuilder.images.layers import LayerStore
from envbuilder.images.oci import Descriptor, Layout
from envbuilder.images.parts import Part
from envbuilder.images.registry import Reference, Registry, RegistryError
from envbuilder.images.write import write_images
from envbuilder.store.cache import Store
from envbuilder.store.settings import Settings
from tests.unit.images.small import small_inputs, wheel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from envbuilder.build.image_inputs import ImageSource
    from envbuilder.images.inputs import Inputs

NEEDED = [
    pytest.mark.programs,
    pytest.mark.enable_socket,
    pytest.mark.skipif(
        shutil.which("docker-registry") is None, reason="docker-registry is not installed (Debian: apt install docker-registry)"
    ),
]
pytestmark = NEEDED
NOISE = 20_000_000  # bytes that do not compress: some pieces of an upload


class Running:
    """A registry that can be killed and started again over the same folder."""

    def __init__(self, folder: Path, *, password: str = "") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.folder, self.password = folder, password
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        lines = [
            "version: 0.1",
            "log: {level: error}",
            f"storage: {{filesystem: {{rootdirectory: {self.folder / 'data'}}}}}",
            f'http: {{addr: "127.0.0.1:{self.port}", secret: "the same after a restart"}}',
        ]
        if self.password:
            lines.append(f"auth: {{htpasswd: {{realm: test, path: {self.folder / 'htpasswd'}}}}}")
        config = self.folder / "config.yml"
        config.write_text("\n".join(lines))
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
        for _ in range(100):
            with contextlib.suppress(requests.ConnectionError):
                requests.get(f"http://127.0.0.1:{self.port}/v2/", timeout=1)
                return
            time.sleep(0.05)
        pytest.fail("docker-registry did not start")

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    folder = tmp_path / "registry"
    folder.mkdir()
    registry = Running(folder)
    registry.start()
    yield registry
    registry.kill()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Layout]:
    """Return a function that writes small images into one folder; with it, a layer of 20 MB that does not compress."""

    def do(text: str = "bar\n") -> Layout:
        folder = tmp_path / "inputs"
        folder.mkdir(exist_ok=True)
        noise = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(NOISE // 32))
        inputs = small_inputs(
            folder, serve={"tqdm": wheel("tqdm", {"tqdm/__init__.py": text.encode()}), "noise": wheel("noise", {"noise.bin": noise})}
        )
        layout = Layout(tmp_path / "image")
        write_images(inputs, layers=LayerStore(tmp_path / "store"), layout=layout, console=Console(stream=io.StringIO()))
        return layout

    return do


def client(host: str, tmp_path: Path) -> Registry:
    return Registry(reference=Reference.parse(f"{host}/team/vllm"), settings=Settings(), state=tmp_path / "uploads")


def push(host: str, layout: Layout, tmp_path: Path) -> int:
    registry = client(host, tmp_path)
    registry.push(layout, tags_of(registry.reference, "1", IMAGES))
    return registry.sent_bytes


def test_only_what_is_missing_is_sent(running: Running, write: Callable[..., Layout], tmp_path: Path) -> None:
    """A fleet's uplink: the same images cost nothing, another package costs its small layer."""
    first = push(running.host, write(), tmp_path)
    assert first > NOISE
    assert push(running.host, write(), tmp_path) == 0
    assert 0 < push(running.host, write("other\n"), tmp_path) < 200_000


def test_an_upload_goes_on_where_it_was(
    running: Running, write: Callable[..., Layout], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry dies in the middle of a layer; the next run sends the rest of it, not the whole."""
    layout = write()
    real, sent = requests.Session.request, []

    def request(self: requests.Session, method: str, url: str, **options: object) -> requests.Response:
        if method == "PATCH":
            sent.append(len(options["data"]))  # type: ignore[arg-type]
            if sum(sent) > NOISE // 2 and running.process and running.process.poll() is None:
                running.kill()
        return real(self, method, url, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(requests.Session, "request", request)
    with pytest.raises(RegistryError):
        push(running.host, layout, tmp_path)
    monkeypatch.undo()
    assert list((tmp_path / "uploads").glob("*.json"))
    running.start()
    assert push(running.host, layout, tmp_path) < NOISE - (4 << 20)
    assert not list((tmp_path / "uploads").glob("*.json"))


def test_a_dropped_connection_is_taken_up_again(running: Running, write: Callable[..., Layout], tmp_path: Path) -> None:
    """Between us and the registry stands something that cuts the first long connection after 12 MB."""
    with cutting_proxy(running.port, after=12 << 20) as port:
        assert push(f"127.0.0.1:{port}", write(), tmp_path) >= NOISE
    assert push(running.host, write(), tmp_path) == 0


def test_other_machines_take_what_one_has_pushed(running: Running, write: Callable[..., Layout], tmp_path: Path) -> None:
    layout = write()
    push(running.host, layout, tmp_path)
    other = Layout(tmp_path / "other")
    taken = take(f"{running.host}/team/vllm", "1", "0" * 64, other, settings=Settings(), state=tmp_path / "uploads")
    assert taken.images == IMAGES
    assert {it.descriptor for it in other.images()} == {it.descriptor for it in layout.images()}
    assert all(other.check(blob) == "" for image in other.images() for blob in image.blobs)
    refused = take(f"{running.host}/team/vllm", "1", "1" * 64, Layout(tmp_path / "third"), settings=Settings(), state=tmp_path / "uploads")
    assert refused.images == ()
    assert "another lock" in refused.detail


def as_of(source: ImageSource, inputs: Inputs) -> Inputs:
    """Return inputs as they would be of a target that compiles vLLM: wheels by hashes of its lock, and vLLM's by another."""
    names = sorted({wheel.name for environment in inputs.environments.values() for wheel in environment.wheels})
    known = {**dict(zip(names, sorted(hashes_of(source)), strict=False)), "vllm": "f" * 64}
    environments = {
        name: replace(
            environment,
            wheels=tuple(replace(wheel, sha256=known[wheel.name]) for wheel in environment.wheels),
            compiled={"vllm": compiled_of(source)} if name == "serve" else {},
        )
        for name, environment in inputs.environments.items()
    }
    return replace(
        inputs,
        target=source.target.name,
        release=source.release_name,
        machine=source.machine,
        lock=source.lock.digest,
        target_file=target_document(source),
        environments=environments,
        parts={**inputs.parts, **dict.fromkeys(known.values(), Part())},
    )


def test_a_machine_that_built_nothing_takes_what_another_compiled(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One Spark compiles for an hour, the others ask for what it pushed; another lock's or source's images are not theirs."""
    monkeypatch.setenv("ENVBUILDER_CACHE", str(tmp_path / "cache"))
    console = Console(stream=io.StringIO())
    source = source_of_lock("dgx-spark", None, None, store=Store(tmp_path / "store"), console=console, offline=True)
    (tmp_path / "inputs").mkdir()
    inputs = as_of(source, small_inputs(tmp_path / "inputs"))
    layout = Layout(tmp_path / "image")
    write_images(inputs, layers=LayerStore(tmp_path / "store"), layout=layout, console=console)
    reference = Reference.parse(f"{running.host}/team/vllm")
    client(running.host, tmp_path).push(layout, tags_of(reference, source.release_name, IMAGES))
    argv = ["image", "--out", str(tmp_path / "out"), "--target", "dgx-spark", "--cache-from", f"{running.host}/team/vllm", "--json"]
    assert main(argv) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["reused"] is True
    assert {it["name"]: it["digest"] for it in document["images"]} == {it.name: it.descriptor.digest for it in layout.images()}
    shutil.rmtree(tmp_path / "out")
    assert main([*argv, "--release", "0.23.0-slim"]) == 2
    assert "holds no finished build" in capsys.readouterr().out


def test_a_blob_that_was_changed_in_the_registry_is_refused(running: Running, write: Callable[..., Layout], tmp_path: Path) -> None:
    layout = write()
    push(running.host, layout, tmp_path)
    blob = max((blob for image in layout.images() for blob in image.blobs), key=lambda blob: blob.size)
    value = blob.digest.removeprefix("sha256:")
    path = running.folder / f"data/docker/registry/v2/blobs/sha256/{value[:2]}/{value}/data"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(VerificationError, match="is not what the registry sent"):
        client(running.host, tmp_path).pull_blob(Layout(tmp_path / "other"), Descriptor(media_type="", digest=blob.digest, size=blob.size))


def test_a_registry_that_wants_a_login_gets_docker_s(tmp_path: Path, write: Callable[..., Layout], monkeypatch: pytest.MonkeyPatch) -> None:
    """401 without a login says what to do; with the login of `docker login` the push goes through."""
    bcrypt = shutil.which("htpasswd")
    if bcrypt is None:
        pytest.skip("htpasswd is not installed (Debian: apt install apache2-utils)")
    folder = tmp_path / "registry"
    folder.mkdir()
    line = subprocess.run([bcrypt, "-Bbn", "me", "secret"], capture_output=True, check=True).stdout
    (folder / "htpasswd").write_bytes(line.strip() + b"\n")
    registry = Running(folder, password="secret")
    registry.start()
    try:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("DOCKER_CONFIG", raising=False)
        layout = write()
        with pytest.raises(RegistryError, match="does not let us in") as caught:
            push(registry.host, layout, tmp_path)
        assert "docker login" in caught.value.next
        (tmp_path / ".docker").mkdir()
        login = {"auths": {registry.host: {"auth": base64.b64encode(b"me:secret").decode()}}}
        (tmp_path / ".docker/config.json").write_text(json.dumps(login))
        assert push(registry.host, layout, tmp_path) > NOISE
    finally:
        registry.kill()


class cutting_proxy:  # noqa: N801 - used as a function
    """A proxy that passes bytes on, and closes one connection after so many of them."""

    def __init__(self, port: int, *, after: int) -> None:
        self._target, self._after, self._cut = port, after, False

    def __enter__(self) -> int:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()
        port: int = self._listener.getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, source: socket.socket, goal: socket.socket) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                passed += len(data)
                if passed > self._after and not self._cut:
                    self._cut = True
                    break
                goal.sendall(data)
        for end in (source, goal):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def test_podman_s_tools_read_what_we_pushed(running: Running, write: Callable[..., Layout], tmp_path: Path) -> None:
    """Somebody else's client: it must find an image that it can read, layer by layer."""
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    push(running.host, write(), tmp_path)
    goal = tmp_path / "copied"
    argv = ["skopeo", "copy", "--src-tls-verify=false", f"docker://{running.host}/team/vllm:1-serve", f"oci:{goal}:serve"]
    subprocess.run(argv, check=True, capture_output=True, env={**os.environ, "HOME": str(tmp_path)})
    assert (goal / "index.json").is_file()
