"""How long the `serve` image takes: written by envbuilder, built by docker, built by buildah; cold, and with one package changed.

    python bench/images.py --out .envbuilder/cpu --work DIR [--engines docker buildah] [--registry 127.0.0.1:5000]

All make the same files from the same wheels, which are at hand: nothing is downloaded. Engines get a Dockerfile that
installs the wheels with pip, as people write it. "Changed" is one small distribution less in the requirements, which is
what another version of it costs.

They do not stop at the same point, so three times are taken of each, all counted from the start:
  made     envbuilder: a layout of compressed layers with their digests, ready to be sent. Engines: an image in their own
           storage, unpacked on the disk and not compressed (docker 20.10, buildah 1.28).
  loaded   envbuilder: made, and handed to docker; docker: made.
  pushed   made, and in a registry on loopback (--registry, an empty one), which others can pull from. Engines compress with gzip here.
"cpu" are seconds of this process and its children; what dockerd spends is not in it. Runs as root (buildah, dockerd);
DOCKER_HOST names the engine. One JSON document, with how many times as long each engine took ("times"), and the sizes of
the build's images beside the sum of their wheels.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envbuilder.build.image_inputs import make_inputs
from envbuilder.build.image_stage import source_of_build
from envbuilder.build.papers import images_of
from envbuilder.console import Console
from envbuilder.images.engines import DockerEngine
from envbuilder.images.layers import LayerStore, write_tar
from envbuilder.images.oci import Layout as ImageLayout
from envbuilder.images.recipe import layers_of
from envbuilder.images.registry import Reference, Registry
from envbuilder.images.write import write_images
from envbuilder.layout import Layout
from envbuilder.store.cache import Store, default_root
from envbuilder.store.settings import Settings

if TYPE_CHECKING:
    from envbuilder.images.inputs import Inputs

DOCKERFILE = """FROM scratch
ADD rootfs.tar /
RUN python3 -m venv --without-pip /opt/venv
COPY requirements.txt /requirements.txt
RUN --mount=type=bind,source=wheels,target=/wheels \\
    pip --python /opt/venv/bin/python install --no-deps --no-index --find-links /wheels --no-compile --no-cache-dir -r /requirements.txt
"""
OPTIONS = {
    "docker": ["build", "--network", "host", "--pull=false", "--tag", "envbuilder-bench"],
    "buildah": ["bud", "--isolation", "chroot", "--layers", "--pull-never", "--tag", "envbuilder-bench"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--engines", nargs="*", default=["docker", "buildah"])
    parser.add_argument("--registry", help="host:port of a registry on this machine, without a login")
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    console = Console(stream=io.StringIO())
    source = source_of_build(Layout.of(args.out), store=Store(default_root()), console=console, offline=True)
    inputs = make_inputs(source, {})
    wheels = inputs.environments["serve"].wheels
    results: dict[str, Any] = {"wheels": {"count": len(wheels), "bytes": sum(it.path.stat().st_size for it in wheels)}}
    results["load average"] = os.getloadavg()[0]
    results["envbuilder"] = write(inputs, args.work, load="docker" in args.engines, registry=args.registry)
    prepare(inputs, args.work / "context")
    built = {engine: build(engine, inputs, args.work / "context", args.registry) for engine in args.engines}
    results |= built
    results["times"] = {engine: times(results["envbuilder"], found) for engine, found in built.items()}
    results["images"] = {it.name: sum(blob.size for blob in it.layers) for it in images_of(Layout.of(args.out)).images()}
    print(json.dumps(results, indent=2))


def changed(inputs: Inputs) -> Inputs:
    """Return inputs without one small distribution."""
    serve = inputs.environments["serve"]
    other = replace(serve, wheels=tuple(it for it in serve.wheels if it.name != "tqdm"))
    return replace(inputs, environments={**inputs.environments, "serve": other})


class Clock:
    """Seconds since it was made, and CPU seconds of this process and its children."""

    def __init__(self) -> None:
        self._begun, self._cpu = time.monotonic(), self._used()

    def read(self) -> dict[str, float]:
        return {"seconds": round(time.monotonic() - self._begun, 1), "cpu": round(self._used() - self._cpu, 1)}

    @staticmethod
    def _used() -> float:
        return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def write(inputs: Inputs, work: Path, *, load: bool, registry: str | None) -> dict[str, Any]:
    """Make the layers of `serve` in a store of their own, name them in a layout, load and push that."""
    layers, layout = LayerStore(work / "store"), ImageLayout(work / "image")
    found: dict[str, Any] = {}
    for name, one in (("cold", inputs), ("changed", changed(inputs))):
        clock = Clock()
        write_images(one, layers=layers, layout=layout, console=Console(stream=io.StringIO()), images=("serve",))
        made = clock.read()
        reached = {"made": made}
        if load:
            clock = Clock()
            engine = DockerEngine.connect()
            engine.load(layout, {"envbuilder-bench:loaded": layout.images()[0]})
            reached["loaded"] = _sum(made, clock.read())
            engine.client.images.remove("envbuilder-bench:loaded")
        if registry:
            clock = Clock()
            reference = Reference.parse(f"{registry}/envbuilder")
            Registry(reference=reference, settings=Settings(), state=work / "uploads").push(layout, {"serve": "bench"})
            reached["pushed"] = _sum(made, clock.read())
        found[name] = reached
    found["bytes"] = sum(blob.size for blob in layout.images()[0].layers)
    return found


def _sum(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {key: round(one[key] + other[key], 1) for key in one}


def prepare(inputs: Inputs, context: Path) -> None:
    """Lay out what the Dockerfile needs; the time for it is not counted."""
    (context / "wheels").mkdir(parents=True)
    for wheel in inputs.environments["serve"].wheels:
        shutil.copyfile(wheel.path, context / "wheels" / wheel.filename)
    with contextlib.ExitStack() as stack, (context / "rootfs.tar").open("wb") as goal:
        write_tar(layers_of("serve", inputs)[0].make(stack).values(), goal)
    (context / "Dockerfile").write_text(DOCKERFILE, encoding="utf-8")


def build(engine: str, inputs: Inputs, context: Path, registry: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, one in (("cold", inputs), ("changed", changed(inputs))):
        lines = [f"{wheel.name}=={wheel.version}\n" for wheel in one.environments["serve"].wheels]
        (context / "requirements.txt").write_text("".join(lines), encoding="utf-8")
        clock = Clock()
        _run(engine, *OPTIONS[engine], *(["--no-cache"] if name == "cold" else []), str(context))
        reached = {"made": clock.read()}
        if registry:
            goal = f"{registry}/{engine}:bench"
            if engine == "docker":
                _run(engine, "tag", "envbuilder-bench", goal)
                _run(engine, "push", goal)
            else:
                _run(engine, "push", "--tls-verify=false", "envbuilder-bench", f"docker://{goal}")
            reached["pushed"] = clock.read()
        found[name] = reached
    return found


def times(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return how many times as long an engine took, cold and changed, to each point that both reached."""
    return {
        name: {point: round(clock["seconds"] / max(ours[name][point]["seconds"], 0.1), 1) for point, clock in found.items()}
        for name, found in theirs.items()
    }


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, env={**os.environ, "DOCKER_BUILDKIT": "1"}, stdout=sys.stderr)


if __name__ == "__main__":
    main()
