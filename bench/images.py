"""How long the `serve` image takes: written by envbuilder, built by docker, built by buildah; cold, and with one package changed.

    python bench/images.py --out .envbuilder/cpu --work DIR [--engines docker buildah]

All make the same files from the same wheels. Engines get a Dockerfile that installs the wheels with pip, as people write
it: the wheels are at hand, nothing is downloaded. "Changed" is one small distribution less in the requirements, which is
what another version of it costs. Runs as root (buildah, dockerd); DOCKER_HOST names the engine. One JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envbuilder.build.image_inputs import make_inputs
from envbuilder.build.image_stage import source_of_build
from envbuilder.console import Console
from envbuilder.images.layers import LayerStore, write_tar
from envbuilder.images.oci import Layout as ImageLayout
from envbuilder.images.recipe import layers_of
from envbuilder.images.write import write_images
from envbuilder.layout import Layout
from envbuilder.store.cache import Store, default_root

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
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    console = Console(stream=io.StringIO())
    source = source_of_build(Layout.of(args.out), store=Store(default_root()), console=console, offline=True)
    inputs = make_inputs(source, {})
    wheels = inputs.environments["serve"].wheels
    results: dict[str, object] = {"wheels": {"count": len(wheels), "bytes": sum(it.path.stat().st_size for it in wheels)}}
    results["load average"] = os.getloadavg()[0]
    results["envbuilder"] = write(inputs, args.work)
    prepare(inputs, args.work / "context")
    results |= {engine: build(engine, inputs, args.work / "context") for engine in args.engines}
    print(json.dumps(results, indent=2))


def changed(inputs: Inputs) -> Inputs:
    """Return inputs without one small distribution."""
    serve = inputs.environments["serve"]
    other = replace(serve, wheels=tuple(it for it in serve.wheels if it.name != "tqdm"))
    return replace(inputs, environments={**inputs.environments, "serve": other})


def write(inputs: Inputs, work: Path) -> dict[str, float]:
    """Make the layers of `serve` in a store of their own, and name them in a layout."""
    layers, layout = LayerStore(work / "store"), ImageLayout(work / "image")
    found = {}
    for name, one in (("cold", inputs), ("changed", changed(inputs))):
        begun = time.monotonic()
        write_images(one, layers=layers, layout=layout, console=Console(stream=io.StringIO()), images=("serve",))
        found[name] = round(time.monotonic() - begun, 1)
    found["bytes"] = sum(blob.size for blob in layout.images()[0].layers)
    return found


def prepare(inputs: Inputs, context: Path) -> None:
    """Lay out what the Dockerfile needs; the time for it is not counted."""
    (context / "wheels").mkdir(parents=True)
    for wheel in inputs.environments["serve"].wheels:
        shutil.copyfile(wheel.path, context / "wheels" / wheel.filename)
    with contextlib.ExitStack() as stack, (context / "rootfs.tar").open("wb") as goal:
        write_tar(layers_of("serve", inputs)[0].make(stack).values(), goal)
    (context / "Dockerfile").write_text(DOCKERFILE, encoding="utf-8")


def build(engine: str, inputs: Inputs, context: Path) -> dict[str, float]:
    found = {}
    for name, one in (("cold", inputs), ("changed", changed(inputs))):
        lines = [f"{wheel.name}=={wheel.version}\n" for wheel in one.environments["serve"].wheels]
        (context / "requirements.txt").write_text("".join(lines), encoding="utf-8")
        argv = [engine, *OPTIONS[engine], *(["--no-cache"] if name == "cold" else []), str(context)]
        begun = time.monotonic()
        subprocess.run(argv, check=True, env={**os.environ, "DOCKER_BUILDKIT": "1"}, stdout=sys.stderr)
        found[name] = round(time.monotonic() - begun, 1)
    return found


if __name__ == "__main__":
    main()
