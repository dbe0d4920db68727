"""What is to be known of each wheel and package beside its hash: what it requires, and under which licences it comes.

Reading it from 300 archives takes seconds and never changes, so the store remembers it.
"""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import asdict, dataclass
from email.parser import HeaderParser
from typing import TYPE_CHECKING, Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from envbuilder.errors import VerificationError
from envbuilder.files import digest_of, write_json
from envbuilder.images.rootfs import read_debs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from email.message import Message
    from pathlib import Path

    from envbuilder.images.deb import Deb
    from envbuilder.images.inputs import Package
    from envbuilder.images.wheels import Wheel

_REVISION = 1
_CLASSIFIER = "License :: OSI Approved :: "
_LICENSE_LINE = re.compile(r"^License: *(\S[^\n]*)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Part:
    """`expression` is an SPDX licence expression; else `licenses` are names as the part's author wrote them."""

    requires: tuple[str, ...] = ()
    expression: str = ""
    licenses: tuple[str, ...] = ()


def gather(wheels: Sequence[Wheel], packages: Sequence[Package], *, root: Path) -> dict[str, Part]:
    """Return {sha256: part} of all of them. Raises VerificationError for a file that is not what it is taken for."""
    by_hash = {wheel.sha256: wheel for wheel in wheels}
    found = _remembered(root, sorted(by_hash), lambda: {value: _wheel(wheel.path) for value, wheel in by_hash.items()})
    paths = {package.locked.sha256: package.path for package in packages}
    return found | _remembered(root, sorted(paths), lambda: _packages(paths))


def _remembered(root: Path, hashes: Sequence[str], read: Any) -> dict[str, Part]:  # noqa: ANN401 - a function of no arguments
    path = root / "layers" / f"parts-{digest_of([_REVISION, *hashes])}.json"
    try:
        return {
            value: Part(**{**row, "requires": tuple(row["requires"]), "licenses": tuple(row["licenses"])})
            for value, row in json.loads(path.read_bytes()).items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        found: dict[str, Part] = read()
        write_json(path, {value: asdict(part) for value, part in found.items()})
        return found


# -- wheels ------------------------------------------------------------------------------------------------------


def _wheel(path: Path) -> Part:
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
            metadata = HeaderParser().parsestr(archive.read(name).decode(errors="replace"))
    except (zipfile.BadZipFile, StopIteration, OSError) as error:
        raise VerificationError(
            f"{path.name} cannot be read as a wheel", why=str(error), next="Remove it from the store, and build again: it is fetched anew."
        ) from error
    requires = tuple(metadata.get_all("Requires-Dist") or ())
    if stated := metadata.get("License-Expression"):
        try:
            return Part(requires=requires, expression=str(canonicalize_license_expression(stated)))
        except InvalidLicenseExpression:
            return Part(requires=requires, licenses=(stated,))
    return Part(requires=requires, licenses=tuple(_wheel_licenses(metadata)))


def _wheel_licenses(metadata: Message) -> list[str]:
    classifiers = metadata.get_all("Classifier") or []
    if stated := {text.removeprefix(_CLASSIFIER) for text in classifiers if text.startswith(_CLASSIFIER)}:
        return sorted(stated)
    first = str(metadata.get("License") or "").strip().split("\n")[0]  # some put the whole text there
    return [first[:120]] if first else []


# -- packages ----------------------------------------------------------------------------------------------------


def _packages(paths: Mapping[str, Path]) -> dict[str, Part]:
    by_name = {deb.fields["package"]: Part(licenses=tuple(_debian_licenses(deb))) for deb in read_debs(paths.values())}
    return {value: by_name[path.name.partition("_")[0]] for value, path in paths.items()}


def _debian_licenses(deb: Deb) -> Iterable[str]:
    """Return the short names in a package's copyright file where that is machine-readable (DEP 5), else where it lies in the image."""
    goal = f"usr/share/doc/{deb.fields['package']}/copyright"
    for entry in deb.entries:
        if entry.path == goal and entry.opener:
            with entry.open() as stream:
                if found := _LICENSE_LINE.findall(stream.read().decode(errors="replace")):
                    return sorted({name.strip() for name in found})
    return [f"see /{goal}"]
