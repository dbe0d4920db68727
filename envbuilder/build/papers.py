"""What lies beside images and is attached to them in a registry: their bill of materials, and their provenance, signed where a key is given."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

from envbuilder import __version__
from envbuilder.build.image_inputs import compiled_of, hashes_of, settings_of, target_document
from envbuilder.errors import ConfigurationError
from envbuilder.files import canonical_json, parse_json, sha256_file, write_json
from envbuilder.images.oci import Layout as ImageLayout
from envbuilder.images.provenance import signed
from envbuilder.images.referrers import ENVELOPE, SBOM, STATEMENT, Paper
from envbuilder.images.sbom import merged
from envbuilder.images.verify import own_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from envbuilder.build.image_inputs import ImageSource
    from envbuilder.layout import Layout


def images_of(layout: Layout) -> ImageLayout:
    return ImageLayout(layout.out / "image")


def sbom_of(layout: Layout) -> Path:
    return layout.out / "sbom.cdx.json"


def provenance_of(layout: Layout) -> Path:
    return layout.out / "provenance.json"


def envelope_of(layout: Layout) -> Path:
    return layout.out / "provenance.dsse.json"


def bills_of(layout: Layout) -> dict[str, bytes]:
    """Return the bill of materials that each image holds, by the image's name."""
    images = images_of(layout)
    return {image.name: own_files(images, image)["sbom.cdx.json"] for image in images.images()}


def subjects_of(layout: Layout) -> dict[str, str]:
    """Return what a statement on these images is on: {name: sha256 in hex}."""
    found = {f"image/{image.name}": image.descriptor.digest.removeprefix("sha256:") for image in images_of(layout).images()}
    found |= {f"sbom/{name}": hashlib.sha256(content).hexdigest() for name, content in bills_of(layout).items()}
    return found | ({sbom_of(layout).name: sha256_file(sbom_of(layout))} if sbom_of(layout).is_file() else {})


def papers_of(layout: Layout, image: str) -> list[Paper]:
    """Return what is attached to an image: its bill of materials, and its provenance, signed where it is."""
    papers = [Paper(kind=SBOM, name=sbom_of(layout).name, content=bills_of(layout)[image])]
    for path, kind in ((envelope_of(layout), ENVELOPE), (provenance_of(layout), STATEMENT)):
        if path.is_file():
            return [*papers, Paper(kind=kind, name=path.name, content=path.read_bytes())]
    return papers


def statement_in(paper: Paper) -> dict[str, Any]:
    """Return the statement in a paper, signed or not; whose signature it is was not looked at. Raises ValueError."""
    try:
        document = parse_json(paper.content)
        statement: dict[str, Any] = parse_json(base64.b64decode(document["payload"])) if paper.kind == ENVELOPE else document
    except (KeyError, TypeError) as error:
        raise ValueError(f"{paper.name} is no {paper.kind}") from error
    return statement


# -- writing -----------------------------------------------------------------------------------------------------


def write_bill(source: ImageSource, layout: Layout) -> None:
    """Write the bill of materials of all images together."""
    bills = [json.loads(content) for content in bills_of(layout).values()]
    write_json(sbom_of(layout), merged(f"{source.target.name}-{source.release_name}", bills))


def write_provenance(statement: Mapping[str, Any], layout: Layout) -> None:
    """Write a statement; what signs another one goes."""
    write_json(provenance_of(layout), statement)
    try:
        envelope = Paper(kind=ENVELOPE, name="", content=envelope_of(layout).read_bytes())
        kept = canonical_json(statement_in(envelope)) == canonical_json(statement)
    except (OSError, ValueError):
        kept = False
    if not kept:
        envelope_of(layout).unlink(missing_ok=True)


def sign(layout: Layout, key: Path) -> Path:
    """Sign the provenance; return the envelope's path. Raises ConfigurationError: no such key, or nothing to sign."""
    if not provenance_of(layout).is_file():
        raise ConfigurationError("there is no provenance to sign", why="These images were taken from elsewhere, and came without.")
    write_json(envelope_of(layout), signed(json.loads(provenance_of(layout).read_bytes()), key))
    return envelope_of(layout)


# -- images of other machines ------------------------------------------------------------------------------------


def is_ours(source: ImageSource, files: Mapping[str, bytes], *, compiled: bool = False) -> bool:
    """Whether an image says of itself what ours would: this target, these wheels, this version of envbuilder.

    With `compiled`, nothing was built here: its vLLM is to be one that was compiled, from what this lock and target would compile.
    """
    known = hashes_of(source)
    try:
        about = parse_json(files["image.json"])
        names = {row["name"] for row in about["distributions"]}
        foreign = {row["name"] for row in about["distributions"] if row["sha256"] not in known}
        right = (
            all(canonical_json(about["compiled"][name]) == canonical_json(compiled_of(source)) for name in foreign) if compiled else True
        )
        made = (about["envbuilder"], about["python"], about["platform"])
    except (KeyError, TypeError, ValueError):
        return False
    here = (__version__, settings_of(source).python, f"linux/{source.machine}")
    expected = names & {"vllm"} if compiled else set()
    return made == here and files.get("target.json") == target_document(source) and foreign == expected and right


def keep_papers(source: ImageSource, layout: Layout, papers: Sequence[Paper]) -> None:
    """Write what came with images of another machine. Whether it is true is for `verify` to say."""
    write_bill(source, layout)
    for path in (provenance_of(layout), envelope_of(layout)):
        path.unlink(missing_ok=True)
    for paper in sorted(papers, key=lambda paper: paper.kind == ENVELOPE):
        if paper.kind != SBOM:
            try:
                write_json(provenance_of(layout), statement_in(paper))
                if paper.kind == ENVELOPE:
                    write_json(envelope_of(layout), json.loads(paper.content))
            except ValueError:
                continue  # then there is none, and verify says so
