"""Writing the images of a target into an OCI layout: no engine, no root, no registry."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envbuilder.files import canonical_json, vanishing
from envbuilder.images.about import labels
from envbuilder.images.oci import ARCHITECTURES, CONFIG_TYPE, MANIFEST_TYPE, Descriptor
from envbuilder.images.recipe import OWN, contents, layers_of
from envbuilder.images.wheels import PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envbuilder.console import Console
    from envbuilder.images.inputs import ImageName, Inputs
    from envbuilder.images.layers import Blob, Layer, LayerStore
    from envbuilder.images.oci import Layout

CREATED = "2020-01-01T00:00:00Z"  # tree.EPOCH
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, kw_only=True)
class Written:
    """An image that lies in the layout. `made` are the digests of its layers that were not in the store before."""

    name: ImageName
    descriptor: Descriptor
    layers: tuple[tuple[str, Blob], ...]
    made: tuple[str, ...]

    @property
    def size(self) -> int:
        return sum(blob.size for _, blob in self.layers)


@vanishing()
def write_images(
    inputs: Inputs, *, layers: LayerStore, layout: Layout, console: Console, images: Sequence[ImageName] | None = None
) -> list[Written]:
    """Write images and name them in the layout's index. Layers that several images have are made once."""
    inputs.compression.check()
    recipes = {image: layers_of(image, inputs) for image in images or inputs.images}
    wanted = {layer.key(inputs.compression): layer for recipe in recipes.values() for layer in recipe}
    blobs = _make(wanted, inputs, console, layers=layers, layout=layout)
    written = [_write(image, recipe, inputs, blobs, layout) for image, recipe in recipes.items()]
    platform = platform_of(inputs)
    layout.write_index([(it.name, it.descriptor, platform) for it in written])
    return written


def platform_of(inputs: Inputs) -> dict[str, str]:
    return {**ARCHITECTURES[inputs.machine], "os": "linux"}


def _make(
    wanted: Mapping[str, Layer], inputs: Inputs, console: Console, *, layers: LayerStore, layout: Layout
) -> dict[str, tuple[Blob, bool]]:
    """Make the layers that the store does not have, one per core: unpacking, hashing and compressing all leave the interpreter's lock."""
    missing = [key for key, layer in wanted.items() if layer.ready is None and layers.find(key) is None]
    with console.progress("layers", len(missing), unit="layers") as progress, ThreadPoolExecutor(os.cpu_count() or 1) as pool:

        def make(key: str) -> tuple[str, tuple[Blob, bool]]:
            blob, made = layers.get(wanted[key], inputs.compression)
            # Under its second name at once: whoever cleans the store while the others are made takes nothing from us.
            layout.add_file(blob.media_type, layers.path(blob.digest), blob.digest)
            if made:
                progress.advance(1)
            return key, (blob, made)

        tasks = [pool.submit(make, key) for key in wanted]
        try:
            return dict(task.result() for task in tasks)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _write(image: ImageName, recipe: Sequence[Layer], inputs: Inputs, blobs: Mapping[str, tuple[Blob, bool]], layout: Layout) -> Written:
    chosen = [(layer.name, *blobs[layer.key(inputs.compression)]) for layer in recipe]
    descriptors = [Descriptor(media_type=blob.media_type, digest=blob.digest, size=blob.size) for _, blob, _ in chosen]
    config = layout.add_bytes(CONFIG_TYPE, canonical_json(configuration(image, inputs, [(name, blob.diff_id) for name, blob, _ in chosen])))
    manifest = manifest_of(image, inputs, [config, *descriptors])
    return Written(
        name=image,
        descriptor=layout.add_bytes(MANIFEST_TYPE, canonical_json(manifest)),
        layers=tuple((name, blob) for name, blob, _ in chosen),
        made=tuple(blob.digest for _, blob, made in chosen if made),
    )


def manifest_of(image: ImageName, inputs: Inputs, blobs: Sequence[Descriptor]) -> dict[str, Any]:
    """Return an image's manifest; `blobs` are its configuration and its layers."""
    config, *layers = (blob.as_dict() for blob in blobs)
    said = labels(contents(image, inputs))
    return {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers, "annotations": said}


def configuration(image: ImageName, inputs: Inputs, layers: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return an image's configuration: who runs, with which variables, what is started; `layers` by name and digest of their tar."""
    serving = image == "serve"
    return {
        **platform_of(inputs),
        "created": CREATED,
        "config": {
            "User": inputs.user.name,
            "WorkingDir": inputs.user.home,
            "Env": [f"{name}={value}" for name, value in variables(image, inputs).items()],
            **({"Entrypoint": [f"/{OWN}/bin/serve"], "Cmd": ["--help"]} if serving else {"Cmd": ["bash" if image == "dev" else "python"]}),
            "Labels": labels(contents(image, inputs)),
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
        "history": [{"created": CREATED, "created_by": f"envbuilder: {name}"} for name, _ in layers],
    }


def variables(image: ImageName, inputs: Inputs) -> dict[str, str]:
    """Return what programs find in their environment. pip is led to ours, and kept from replacing what was proved together."""
    environment = inputs.environment_of(image)
    return {
        "PATH": f"/{PREFIX}/bin:{_SYSTEM_PATH}",
        "VIRTUAL_ENV": f"/{PREFIX}",
        "LANG": "C.UTF-8",
        "PIP_PYTHON": f"/{PREFIX}/bin/python",
        "PIP_CONSTRAINT": f"/{OWN}/constraints.txt",
        # Compiled modules go where this user may write: without them each process would compile vLLM's 1,700 modules.
        "PYTHONPYCACHEPREFIX": f"{inputs.user.home}/.cache/python",
        **(environment.variables if image != "base" else {}),
    }
