"""Reading torch's and vLLM's wheels on a package index, one after another, keeping what each one said."""

from __future__ import annotations

import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pypi_simple
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from envbuilder.binaries.atlas_facts import WheelFacts, read_extension_wheel, read_torch_wheel
from envbuilder.binaries.remote import RemoteFile
from envbuilder.errors import FetchError
from envbuilder.files import write_atomic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import requests

    from envbuilder.binaries.atlas import Verified
    from envbuilder.console import Console

_BUFFER = 8 << 20  # bytes per request
_AT_ONCE = 3
_PYTHON = "cp312"  # torch's libraries are the same in the wheels of all Pythons but for libtorch_python
_MACHINES = ("aarch64", "x86_64")


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel on an index."""

    project: str
    version: str
    machine: str
    filename: str
    url: str
    sha256: str
    size: int


def find_wheels(session: requests.Session, indexes: Iterable[str], *, oldest: Mapping[str, str]) -> list[Wheel]:
    """Return the wheels of each project from its oldest release of interest on: final releases, Linux, not yanked."""
    found: dict[str, Wheel] = {}
    for index in indexes:
        client = pypi_simple.PyPISimple(endpoint=index, session=session)
        for project, first in oldest.items():
            try:
                page = client.get_project_page(project)
            except (pypi_simple.NoSuchProjectError, OSError):
                continue  # a small index of one's own knows neither
            for package in page.packages:
                wheel = _wheel(project, package, Version(first))
                if wheel is not None:
                    found.setdefault(wheel.sha256, wheel)
    if not found:
        raise FetchError("no index that is configured has torch's or vLLM's wheels", next="Check the network and pip's or uv's settings.")
    return sorted(found.values(), key=lambda wheel: (wheel.project, Version(wheel.version), wheel.filename))


def read_all(wheels: Sequence[Wheel], session: requests.Session, *, work: Path, console: Console) -> list[WheelFacts]:
    """Read each wheel, or what is kept of it in `work`. Raises FetchError, MalformedElfError, zipfile.BadZipFile."""
    new = [wheel for wheel in wheels if not _kept(work, wheel).is_file()]
    console.line(f"{len(wheels)} wheels, {len(wheels) - len(new)} of them read before")
    with console.progress("wheels", len(new), unit="wheels") as progress, ThreadPoolExecutor(_AT_ONCE) as pool:
        for transferred, wheel in pool.map(lambda wheel: (_read(wheel, session, work), wheel), new):
            console.line(f"  {wheel.filename}: {transferred / 1e6:.0f} of {wheel.size / 1e6:.0f} MB read")
            progress.advance(1)
    return [WheelFacts.from_json(json.loads(_kept(work, wheel).read_text(encoding="utf-8"))) for wheel in wheels]


def verified_of(path: Path) -> tuple[Verified, ...]:
    """Return the pairs that an older atlas says the real loader was asked about: they stay true of the same bytes."""
    from envbuilder.binaries.atlas import Atlas  # noqa: PLC0415 - only for an update

    return Atlas.from_json(json.loads(path.read_text(encoding="utf-8"))).verified if path.is_file() else ()


def _kept(work: Path, wheel: Wheel) -> Path:
    return work / f"{wheel.sha256}.json"


def _read(wheel: Wheel, session: requests.Session, work: Path) -> int:
    remote = RemoteFile(wheel.url, session, name=wheel.filename)
    with zipfile.ZipFile(io.BufferedReader(remote, _BUFFER)) as archive:
        if wheel.project == "torch":
            facts = read_torch_wheel(archive, filename=wheel.filename, sha256=wheel.sha256, version=wheel.version, machine=wheel.machine)
        else:
            facts = read_extension_wheel(
                archive, filename=wheel.filename, sha256=wheel.sha256, project=wheel.project, version=wheel.version, machine=wheel.machine
            )
    write_atomic(_kept(work, wheel), json.dumps(facts.as_json()))
    return remote.transferred


def _wheel(project: str, package: pypi_simple.DistributionPackage, first: Version) -> Wheel | None:
    try:
        _, version, _, tags = parse_wheel_filename(package.filename)
    except (InvalidWheelFilename, InvalidVersion):
        return None
    machines = {machine for tag in tags for machine in _MACHINES if "linux" in tag.platform and tag.platform.endswith(machine)}
    # torch's wheels are one per Python; vLLM's serve all (abi3).
    fits = project != "torch" or any(tag.interpreter == tag.abi == _PYTHON for tag in tags)
    if not machines or not fits or version < first or version.is_prerelease or package.is_yanked or "sha256" not in package.digests:
        return None
    return Wheel(
        project=project,
        version=str(version),
        machine=machines.pop(),
        filename=package.filename,
        url=package.url,
        sha256=package.digests["sha256"],
        size=package.size or 0,
    )
