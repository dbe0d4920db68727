"""Write the images of a finished build, and bring them where they are used.

    envbuilder image --out .envbuilder/cpu
    envbuilder image --out DIR --push registry.example:5000/team/vllm:stable
    envbuilder image --out DIR --cache-from registry.example/team/vllm:stable

Writes base, serve, quantize and dev into DIR/image, an OCI layout, without an engine, root or a registry. With --push
they get the tags TAG-base, TAG-serve, TAG-quantize and TAG-dev (with -amd64 or -arm64 after them where the target has
both platforms); only layers that the registry lacks are sent.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from envbuilder.commands import options

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    from envbuilder.build.image_inputs import ImageSource
    from envbuilder.console import Console
    from envbuilder.images.oci import Image
    from envbuilder.layout import Layout


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", required=True, help="a build's output folder")
    parser.add_argument(
        "--target",
        metavar="T",
        help="the build's target, where its name does not lead to it: a TOML file; where nothing was built, what to take (default: the one that fits this machine)",
    )
    options.add_release(parser)
    parser.add_argument(
        "--platform", metavar="P", help="where nothing was built: one of the target's platforms (default: this machine's own)"
    )
    parser.add_argument(
        "--engine", choices=("none", "docker", "buildah"), default="none", help="who makes the images (default: none, envbuilder itself)"
    )
    parser.add_argument("--load", action="store_true", help="hand the images to the Docker engine of this machine")
    parser.add_argument("--push", metavar="REF", help="send the images to a registry: host[:port]/path[:tag]")
    parser.add_argument(
        "--cache-from",
        metavar="REF",
        help="take images that another machine pushed, where their lock is this one; nothing need be built here",
    )
    parser.add_argument("--sign-key", metavar="FILE", help="sign the provenance with this Ed25519 key (PEM)")
    parser.add_argument("--offline", action="store_true", help="use only files of this machine")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace, console: Console) -> int:
    from pathlib import Path

    from envbuilder.build.image_stage import read_manifest
    from envbuilder.build.papers import images_of, sign
    from envbuilder.build.stages import exclusive
    from envbuilder.images.fleet import repository_of
    from envbuilder.layout import Layout

    for reference in filter(None, (args.push, args.cache_from)):
        repository_of(reference)  # what is no name is said before an hour's work
    layout = Layout.of(args.out)
    source = _source(args, layout, console)
    with exclusive(layout, console):
        reused = bool(args.cache_from) and _take(source, layout, args.cache_from, console)
        if not reused:
            read_manifest(layout)  # none: nothing was taken, and there is nothing to make images from
            _make(source, layout, console)
        if args.sign_key:
            console.line(f"Signed: {sign(layout, Path(args.sign_key))}")
        images = images_of(layout).images()
        loaded = _with_engine(args.engine, source, layout, console) if args.engine != "none" else []
        if args.load:
            loaded = [*loaded, *_load(source, layout, images, console)]
        pushed = _push(source, layout, args.push, images, console) if args.push else []
    document = _document(source, layout, images, reused=reused, pushed=pushed, loaded=loaded)
    if args.json:
        print(json.dumps(document))  # noqa: T201
    else:
        _summary(document, console)
    return 0


def _source(args: argparse.Namespace, layout: Layout, console: Console) -> ImageSource:
    """Return what the images are made from: a finished build; or, where nothing was built and images are to be taken, a lock."""
    from envbuilder.build.image_stage import source_of_build, source_of_lock
    from envbuilder.errors import UsageError
    from envbuilder.store.cache import Store, default_root

    store = Store(default_root())
    if args.cache_from and not layout.manifest.exists():
        target = args.target or options.fitting_target()
        return source_of_lock(target, args.release, args.platform, store=store, console=console, offline=args.offline)
    source = source_of_build(layout, store=store, console=console, offline=args.offline, target=args.target)
    for option, asked, built in (("release", args.release, source.release_name), ("platform", args.platform, f"linux/{source.machine}")):
        if asked not in {None, built}:
            raise UsageError(f"{layout.out} was built for {option} {built}", next=f"Leave --{option} out, or name another folder.")
    return source


def _make(source: ImageSource, layout: Layout, console: Console) -> None:
    from envbuilder.build.image_stage import make_images

    with console.step("images") as step:
        written = make_images(source, layout, console)
        step.detail = f"{len(written)} images, {len({digest for image in written for digest in image.made})} layers new"


def _take(source: ImageSource, layout: Layout, reference: str, console: Console) -> bool:
    """Take images of the same lock from a registry; say so, and return False, where there are none."""
    from envbuilder.build.image_inputs import images_that_can_be
    from envbuilder.build.papers import images_of, is_ours, keep_papers
    from envbuilder.images.fleet import architecture_of, take

    with console.step("cache-from") as step:
        taken = take(
            reference,
            source.release_name,
            source.lock.digest,
            images_of(layout),
            settings=source.settings,
            state=_state(source),
            architecture=architecture_of(source.target, source.machine),
            names=images_that_can_be(source),
            ours=lambda files: is_ours(source, files, compiled=not layout.manifest.exists() and source.release.vllm == "source"),
        )
        step.detail = taken.detail
        if taken.images:
            keep_papers(source, layout, taken.papers)
    if taken.images:
        console.line("What was taken is what its digests say; `envbuilder verify` compares every file with the lock.")
    return bool(taken.images)


def _push(source: ImageSource, layout: Layout, reference: str, images: Sequence[Image], console: Console) -> list[dict[str, Any]]:
    """Push the images, and attach to each its bill of materials and its provenance."""
    from envbuilder.build.papers import images_of, papers_of
    from envbuilder.files import human_size
    from envbuilder.images.fleet import architecture_of, repository_of, tags_of
    from envbuilder.images.referrers import attach
    from envbuilder.images.registry import Registry

    parsed = repository_of(reference)
    registry = Registry(reference=parsed, settings=source.settings, state=_state(source))
    with console.step("push") as step:
        names, architecture = [image.name for image in images], architecture_of(source.target, source.machine)
        pushed = registry.push(images_of(layout), tags_of(parsed, source.release_name, names, architecture=architecture))
        papers = {
            image.descriptor.digest: [
                {"kind": paper.kind, "digest": attach(registry, image.descriptor, paper).digest} for paper in papers_of(layout, image.name)
            ]
            for image in images
        }
        step.detail = f"{len(pushed)} images, {human_size(registry.sent_bytes)} sent"
    return [{"reference": name, "digest": digest, "attached": papers[digest]} for name, digest in pushed]


def _load(source: ImageSource, layout: Layout, images: Sequence[Image], console: Console) -> list[dict[str, str]]:
    from envbuilder.build.papers import images_of
    from envbuilder.images.engines import DockerEngine

    engine = DockerEngine.connect()
    tags = {f"envbuilder/{source.target.name}:{source.release_name}-{image.name}": image for image in images}
    with console.step("load") as step:
        loaded = engine.load(images_of(layout), tags)
        step.detail = f"{len(loaded)} images"
    return [{"engine": "docker", "tag": tag, "id": identity} for tag, identity in loaded.items()]


def _with_engine(name: str, source: ImageSource, layout: Layout, console: Console) -> list[dict[str, str]]:
    from envbuilder.build.papers import images_of
    from envbuilder.images.engines import build_with

    found = []
    for image in images_of(layout).images():
        tag = f"envbuilder/{source.target.name}:{source.release_name}-{image.name}-{name}"
        with console.step(f"{name} {image.name}") as step:
            identity = build_with(
                name, images_of(layout), image, tag, scratch=layout.scratch / "context", log=layout.log(f"{name}-{image.name}")
            )
            found.append({"engine": name, "tag": tag, "id": identity})
            step.detail = tag
    return found


def _state(source: ImageSource) -> Path:
    return source.store.root / "uploads"


def _document(
    source: ImageSource,
    layout: Layout,
    images: Sequence[Image],
    *,
    reused: bool,
    pushed: Sequence[dict[str, Any]],
    loaded: Sequence[dict[str, str]],
) -> dict[str, Any]:
    return {
        "schema": "envbuilder/image/1",
        "target": source.target.name,
        "release": source.release_name,
        "lock": f"sha256:{source.lock.digest}",
        "layout": str(layout.out / "image"),
        "reused": reused,
        "images": [
            {"name": it.name, "digest": it.descriptor.digest, "size": sum(blob.size for blob in it.layers), "layers": len(it.layers)}
            for it in images
        ],
        "pushed": list(pushed),
        "loaded": list(loaded),
    }


def _summary(document: dict[str, Any], console: Console) -> None:
    from envbuilder.files import human_size

    rows = [(it["name"], human_size(it["size"]), str(it["layers"]), it["digest"]) for it in document["images"]]
    console.table(f"{document['target']} {document['release']}", ("image", "size", "layers", "digest"), rows, right=(1, 2))
    for it in (*document["pushed"], *document["loaded"]):
        console.line(it.get("reference") or it["tag"])
