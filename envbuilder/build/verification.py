"""Checking what was built, here or elsewhere, against the lock it says it was built from."""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from envbuilder import __version__
from envbuilder.build.image_inputs import ImageSource, make_inputs, prove, target_document
from envbuilder.build.image_stage import read_manifest
from envbuilder.build.papers import envelope_of, images_of, provenance_of, statement_in, subjects_of
from envbuilder.errors import EnvbuilderError, FetchError, UsageError, VerificationError
from envbuilder.facts.site_packages import find_site, installed
from envbuilder.files import canonical_json, parse_json, remove_tree, sha256_file, storage_errors
from envbuilder.images.inputs import IMAGES
from envbuilder.images.layers import LayerStore
from envbuilder.images.oci import ARCHITECTURES, Descriptor, parse_manifest
from envbuilder.images.oci import Layout as ImageLayout
from envbuilder.images.provenance import fault, opened
from envbuilder.images.referrers import ENVELOPE, SBOM, STATEMENT, Paper, attached
from envbuilder.images.registry import Reference, Registry
from envbuilder.images.verify import Check, check_blobs, check_files, own_files, said
from envbuilder.images.wheels import sound_wheels
from envbuilder.layout import Layout
from envbuilder.locking.model import read_lock
from envbuilder.targets.catalogue import find_target, lock_folder
from envbuilder.targets.model import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from envbuilder.console import Console
    from envbuilder.images.inputs import ImageName, Inputs
    from envbuilder.images.oci import Image
    from envbuilder.images.verify import Compared
    from envbuilder.store.cache import Store
    from envbuilder.store.settings import Settings
    from envbuilder.targets.model import Machine

    Wrong = Callable[[Mapping[str, Any]], str]  # what is wrong with a statement; nothing if nothing is

_CHUNK = 1 << 20
_LOCK_FILE = re.compile(r"lock/([a-z]+\.txt|inputs\.toml)")


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was checked of one image, environment or paper, and how it came out."""

    name: str
    digest: str
    lock: str
    checks: tuple[Check, ...]


@dataclass
class Verifier:
    """Verifies whatever a person names. Images of one lock share what is made of it."""

    store: Store
    settings: Settings
    console: Console
    offline: bool = False
    _inputs: tuple[tuple[str, str], Inputs] | None = None
    _compared: dict[tuple[str, str], Compared] = field(default_factory=dict)

    def verify(self, what: str, *, key: Path | None = None) -> list[Verified]:
        """Verify a folder or an image. Raises UsageError for a name that is neither, VerificationError for what is not ours."""
        folder, _, name = what.rpartition(":") if not Path(what).is_dir() and Path(what.rpartition(":")[0]).is_dir() else (what, "", "")
        path = Path(folder)
        if (path / "oci-layout").is_file():
            if key:
                raise UsageError(
                    "a signature is on the provenance of a build", next="Name the build's folder, which holds provenance.dsse.json."
                )
            return self._layout(ImageLayout(path), name, ())
        if path.is_dir():
            return self._build(Layout.of(path), name, key)
        return self._remote(Reference.parse(what), key)

    # -- images --------------------------------------------------------------------------------------------------

    def _layout(self, layout: ImageLayout, name: str, own_wheels: Sequence[Path]) -> list[Verified]:
        images = [image for image in layout.images() if name in {"", image.name}]
        if not images:
            raise UsageError(f"{layout.root} holds no image {name!r}", why=f"It has: {', '.join(it.name for it in layout.images())}.")
        return [self._image(layout, image, own_wheels) for image in images]

    def _image(self, layout: ImageLayout, image: Image, own_wheels: Sequence[Path]) -> Verified:
        blobs = check_blobs(layout, image)
        with self.console.step(f"verify {image.name}") as step:
            checks = [blobs, *self._against_lock(layout, image, own_wheels)]
            step.detail = ", ".join(f"{check.name} {check.status}" for check in checks)
        return Verified(name=image.name, digest=image.descriptor.digest, lock=image.labels.get("envbuilder.lock", ""), checks=tuple(checks))

    def _against_lock(self, layout: ImageLayout, image: Image, own_wheels: Sequence[Path]) -> Iterator[Check]:
        try:
            files = own_files(layout, image)
        except VerificationError:
            if "envbuilder.lock" not in image.labels:
                raise
            files = {}
        if not files:  # ours by its label, but the layer that would say more is damaged
            yield Check(name="lock", status="fail", detail="the layer with opt/envbuilder cannot be read")
            return
        with self._scratch() as folder:
            try:
                source = replace(self._source(files, folder, own_wheels), near=layout.root / "blobs/sha256")
            except EnvbuilderError as error:
                yield Check(name="lock", status="fail", detail=f"{error.what}: {error.why}")
                return
            stated = image.labels.get("envbuilder.lock")
            agrees = stated == f"sha256:{source.lock.digest}"
            detail = f"{stated}, {_whose(source)}" if agrees else f"label says {stated}"
            yield Check(name="lock", status="pass" if agrees else "fail", detail=detail)
            remade = self._files(layout, image, source, files, folder)
            yield remade
            yield said(image, parse_json(files["image.json"]), proved=remade.status == "pass")

    def _files(self, layout: ImageLayout, image: Image, source: ImageSource, files: Mapping[str, bytes], scratch: Path) -> Check:
        about = parse_json(files["image.json"])
        name: ImageName = about["image"]
        if about["envbuilder"] != __version__:
            detail = (
                f"made by envbuilder {about['envbuilder']}, which may have written other files than {__version__}: compare with that one"
            )
            return Check(name="files", status="not-run", detail=detail)
        known = source.lock.hashes() | set(map(sha256_file, source.own_wheels))
        absent = [row for row in about["distributions"] if row["sha256"] not in known]
        compiled = [path for row in absent if (path := self._compiled_here(source, row))]
        if len(compiled) < len(absent):
            detail = f"{', '.join(row['file'] for row in absent)} is not in its lock, and is not at hand to compare with"
            return Check(name="files", status="not-run", detail=detail)
        try:
            with sound_wheels(f"{name} cannot be made anew"):
                inputs = self._made(replace(source, own_wheels=(*source.own_wheels, *compiled)), about, scratch)
                return check_files(layout, image, inputs, name, self._compared)
        except FetchError as error:
            return Check(name="files", status="not-run", detail=f"{error.what}: {error.why.splitlines()[0] if error.why else ''}")

    def _compiled_here(self, source: ImageSource, row: Mapping[str, str]) -> Path | None:
        """Return the wheel of a distribution that the release compiles, where the store has it; any other has to be in the lock."""
        if source.release.compile is None or row["name"] != "vllm":
            return None
        path = self.store.find(row["sha256"], row["file"])
        return path if path and sha256_file(path) == row["sha256"] else None

    def _made(self, source: ImageSource, about: Mapping[str, Any], scratch: Path) -> Inputs:
        key = (source.lock.digest, f"{about['platform']} {' '.join(path.parent.name for path in source.own_wheels)}")
        if self._inputs is None or self._inputs[0] != key:
            self._inputs = (key, make_inputs(source, prove(source, {}, scratch)))
        return self._inputs[1]

    def _source(self, files: Mapping[str, bytes], folder: Path, own_wheels: Sequence[Path]) -> ImageSource:
        """Take an image at its word on its target and its lock; the lock's own digest proves it whole."""
        locked = {match[1]: content for name, content in files.items() if (match := _LOCK_FILE.fullmatch(name))}
        for name, content in locked.items():
            (folder / name).write_bytes(content)
        lock = read_lock(folder)
        try:
            about = _described(files["image.json"])
            target = Target.model_validate(parse_json(files["target.json"]))
            machine: Machine = about["platform"].removeprefix("linux/")
            release_name, release = target.release(about["release"])
        except (KeyError, TypeError, ValueError, AttributeError, ValidationError) as error:
            raise VerificationError("its own description cannot be read", why=f"{type(error).__name__}: {error}") from error
        if canonical_json(parse_json(files["target.json"])) != files["target.json"]:
            raise VerificationError("its target is not as envbuilder writes it", why="opt/envbuilder/target.json was changed.")
        return ImageSource(
            target=target,
            release_name=release_name,
            release=release,
            lock=lock,
            lock_files=locked,
            machine=machine,
            store=self.store,
            settings=self.settings,
            console=self.console,
            offline=self.offline,
            own_wheels=tuple(own_wheels),
        )

    def _remote(self, reference: Reference, key: Path | None) -> list[Verified]:
        registry = Registry(reference=reference, settings=self.settings, state=self.store.root / "uploads")
        found = registry.manifest(reference.digest or reference.tag or "latest")
        if found is None:
            raise UsageError(f"{reference.host} has no image {reference.path}:{reference.tag or reference.digest or 'latest'}")
        descriptor, payload = found
        with self._scratch() as folder:
            layout = ImageLayout(folder)
            layout.add_bytes(descriptor.media_type, payload)
            manifest = parse_manifest(payload, f"{reference.host}/{reference.path}")
            with self.console.step("pull") as step:
                blobs = [Descriptor.of(it) for it in (manifest["config"], *manifest["layers"])]
                size = sum(self._pull(registry, layout, blob) for blob in blobs)
                step.detail = f"{size} bytes"
            image = layout.read(reference.tag or reference.digest, descriptor)
            verified = self._image(layout, image, ())
            papers = attached(registry, descriptor)
            return [replace(verified, checks=(*verified.checks, *self._attached(layout, image, papers, key)))]

    def _pull(self, registry: Registry, layout: ImageLayout, blob: Descriptor) -> int:
        """Take a blob from the store's layers, if it is sound there, else from the registry; return the bytes fetched."""
        here = LayerStore(self.store.root).path(blob.digest)
        with contextlib.suppress(FileNotFoundError):  # not there, or collected meanwhile
            if here.stat().st_size == blob.size and f"sha256:{sha256_file(here)}" == blob.digest:
                layout.add_file(blob.media_type, here, blob.digest)
        return registry.pull_blob(layout, blob)

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder in the store, where gigabytes have room and layers become second names: /tmp is often memory."""
        root = self.store.root / "verify"
        with storage_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=root))
        try:
            yield folder
        finally:
            remove_tree(folder)

    def _attached(self, layout: ImageLayout, image: Image, papers: Sequence[Paper], key: Path | None) -> Iterator[Check]:
        """Check the papers that a registry has of an image: of each kind, one at least must be right."""
        try:
            bill = own_files(layout, image).get("sbom.cdx.json", b"")
        except VerificationError:
            bill = b""
        subjects = {
            f"image/{image.labels.get('envbuilder.image')}": image.descriptor.digest.removeprefix("sha256:"),
            f"sbom/{image.labels.get('envbuilder.image')}": hashlib.sha256(bill).hexdigest(),
        }
        lock = image.labels.get("envbuilder.lock", "")

        def wrong(statement: Mapping[str, Any]) -> str:
            return fault(statement, subjects, lock, self._known(lock))

        bills = [paper for paper in papers if paper.kind == SBOM]
        if bills:
            same = any(paper.content == bill for paper in bills)
            detail = "it is the one in the image" if same else "it is not the one in the image"
            yield Check(name="sbom", status="pass" if same else "fail", detail=detail)
        else:
            yield Check(name="sbom", status="not-run", detail="there is none")
        yield _provenance_check([paper for paper in papers if paper.kind != SBOM], wrong)
        if key:
            yield _signature_check([paper for paper in papers if paper.kind == ENVELOPE], key, wrong)

    def _known(self, lock: str) -> Inputs | None:
        """Return what was made of a lock, if it was."""
        return self._inputs[1] if self._inputs and f"sha256:{self._inputs[0][0]}" == lock else None

    # -- a build -------------------------------------------------------------------------------------------------

    def _build(self, layout: Layout, name: str, key: Path | None) -> list[Verified]:
        manifest = read_manifest(layout)
        found = [self._environment(layout, env, rows, manifest.get("lock", "")) for env, rows in manifest["environments"].items()]
        if (images_of(layout).root / "oci-layout").is_file():
            own = sorted((layout.out / "wheels").glob("*.whl"))
            found += [_of_build(it, manifest.get("lock", "")) for it in self._layout(images_of(layout), name, own)]
            found.append(self._papers(layout, manifest.get("lock", ""), key))
        elif key:
            raise VerificationError("there is no signed provenance", next="`envbuilder image --sign-key` writes one.")
        return found

    def _environment(self, layout: Layout, name: str, about: Mapping[str, Any], lock: str) -> Verified:
        site = find_site(layout.environment(name))
        with self.console.step(f"verify envs/{name}") as step:
            detail, status = f"there is no environment in {layout.environment(name)}", "fail"
            if site:
                shared = frozenset(installed(site).shared)  # whose file it is, assembly decided by the target's rule
                faults = [fault for row in about["distributions"] if (fault := self._distribution(layout, row, site, shared))]
                detail, status = (
                    (faults[0], "fail") if faults else (f"{len(about['distributions'])} distributions are their wheels' files", "pass")
                )
            step.detail = status
        return Verified(name=f"envs/{name}", digest="", lock=lock, checks=(Check(name="files", status=status, detail=detail),))

    def _distribution(self, layout: Layout, row: Mapping[str, Any], site: Path, shared: frozenset[str]) -> str:
        """Return the first file of a distribution that is not its wheel's."""
        path = self.store.find(row["sha256"], row["file"]) or layout.out / "wheels" / row["file"]
        if not path.is_file():
            return f"{row['file']} is not in the store: nothing to compare with"
        with sound_wheels(f"{row['file']} cannot be compared with"), zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if (
                    member.is_dir()
                    or ".data/" in member.filename
                    or member.filename.endswith(".dist-info/RECORD")
                    or member.filename in shared
                ):
                    continue
                if not _same(archive, member, site / member.filename):
                    return f"{site / member.filename} is not the file in {row['file']}"
        return ""

    def _papers(self, layout: Layout, lock: str, key: Path | None) -> Verified:
        """Check what lies beside the images: the statement must be on all that is here, and on no more."""

        def wrong(statement: Mapping[str, Any]) -> str:
            here = subjects_of(layout)
            if found := fault(statement, here, lock, self._known(lock)):
                return found
            gone = sorted({it["name"] for it in statement["subject"]} - here.keys())
            return f"it is also on {gone[0]}, which is not here" if gone else ""

        checks = [_provenance_check(_read(provenance_of(layout), STATEMENT), wrong)]
        if key:
            checks.append(_signature_check(_read(envelope_of(layout), ENVELOPE), key, wrong))
        return Verified(name="provenance.json", digest="", lock=lock, checks=tuple(checks))


def _described(content: bytes) -> Mapping[str, Any]:
    """Read what an image says of itself, as far as it is used here. Raises KeyError, TypeError, ValueError, AttributeError."""
    about: Mapping[str, Any] = parse_json(content)
    rows = [(row["name"], row["file"], row["sha256"]) for row in about["distributions"]]
    texts = [about["envbuilder"], about["release"], *(text for row in rows for text in row)]
    if about["image"] not in IMAGES or about["platform"].removeprefix("linux/") not in ARCHITECTURES:
        raise ValueError(f"image {about['image']!r} for {about['platform']!r}")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a name, a file or a digest that is no text")
    return about


def _of_build(verified: Verified, lock: str) -> Verified:
    """Require of a build's image that it is of the build's lock."""
    if verified.lock == lock:
        return verified
    check = Check(name="lock", status="fail", detail=f"it is of {verified.lock}, and the build is of {lock}")
    return replace(verified, checks=(*verified.checks, check))


def _whose(source: ImageSource) -> str:
    """Say whether a lock, and the target beside it in an image, are those of this installation: an image can bring its own of both."""
    name = f"{source.target.name} {source.release_name}"
    try:
        target, path = find_target(source.target.name)
        here = read_lock(lock_folder(path, target, source.release_name))
        own = replace(source, target=target, release=target.release(source.release_name)[1])
    except EnvbuilderError:
        return f"of {name}, which is not known here"
    if here.digest != source.lock.digest:
        return f"of another {name} than the one here"
    return f"that of {name} here" + ("" if target_document(own) == target_document(source) else ", with another target around it")


# -- papers ------------------------------------------------------------------------------------------------------


def _provenance_check(papers: Sequence[Paper], wrong: Wrong) -> Check:
    """Whether one of these papers is a true statement; none at all proves nothing, and is no lie."""
    faults = []
    for paper in papers:
        try:
            faults.append(wrong(statement_in(paper)))
        except ValueError as error:
            faults.append(str(error))
    if not faults:
        return Check(name="provenance", status="not-run", detail="there is none")
    return Check(
        name="provenance", status="fail" if all(faults) else "pass", detail=min(faults) or "it is on what is here, and on its lock"
    )


def _signature_check(envelopes: Sequence[Paper], key: Path, wrong: Wrong) -> Check:
    """Whether one of the signed statements is signed by a key, and true."""
    faults = []
    for paper in envelopes:
        try:
            faults.append(wrong(opened(parse_json(paper.content), key)))
        except (VerificationError, ValueError) as error:
            faults.append(str(error))
    if not faults:
        return Check(name="signature", status="fail", detail="there is no signed provenance")
    return Check(name="signature", status="fail" if all(faults) else "pass", detail=min(faults) or "that key signed the provenance")


def _read(path: Path, kind: str) -> list[Paper]:
    return [Paper(kind=kind, name=path.name, content=path.read_bytes())] if path.is_file() else []


def _same(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> bool:
    try:
        if path.stat().st_size != member.file_size:
            return False
        with archive.open(member) as wanted, path.open("rb") as found:
            while chunk := wanted.read(_CHUNK):
                if chunk != found.read(len(chunk)):
                    return False
    except OSError:
        return False
    return True
