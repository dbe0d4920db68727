"""What a folder on the command line stands for: an environment's site-packages, and what editable installs add to it."""

from __future__ import annotations

import contextlib
import json
import re
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit

from envbuilder import reading
from envbuilder.binaries.environment import site_packages_of
from envbuilder.errors import ConfigurationError
from envbuilder.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST = 500  # .pth files, folders that they name, packages in one
_MAX_BYTES = 1 << 16
# What setuptools leaves for an editable install that is not a whole folder: a module with each package's place.
_MAPPING = re.compile(r"^MAPPING\b[^=\n]*=(.*)$", re.MULTILINE)
_MAPPED = re.compile(r"'\w+': '([^'\\]+)'")


@value
class Editables:
    """What is imported from elsewhere. `packages`: folders and single modules; `unseen`: installs whose files were not found."""

    packages: tuple[Path, ...]
    unseen: tuple[str, ...]


def place_of(folder: Path) -> Path:
    """Return the site-packages that a folder stands for, or the folder itself.

    Raises ConfigurationError: what a build left holds several environments, each with a torch of its own.
    """
    site = site_packages_of(folder)
    home = folder / "envs" if (folder / "envs").is_dir() else folder
    if site == folder and home.name == "envs":
        found = sorted(str(inside.parents[2]) for inside in home.glob("*/lib/python3*/site-packages"))
        if found:
            raise ConfigurationError(f"{folder} holds environments, and is none itself", why=", ".join(found), next="Name one of them.")
    return site


def editables_of(site: Path) -> Editables:
    """Find what an environment's .pth files and editable installs add to it, without running any of them."""
    own = {entry.name for entry in _entries(site)}
    folders = [*dict.fromkeys(islice(_added(site), _MOST))]
    candidates = [*(package for folder in folders for package in _importable(folder)), *_mapped(site)]
    # What lies in site-packages itself comes first, and is what is imported.
    packages = tuple(dict.fromkeys(path for path in candidates if path.name not in own))
    return Editables(packages=packages, unseen=tuple(_unseen(site, (*folders, *packages))))


def _added(site: Path) -> Iterator[Path]:
    """Yield the folders that plain lines of .pth files name (Python's `site`; lines that it would run are passed over)."""
    for file in islice(sorted(site.glob("*.pth")), _MOST):
        for line in islice(reading.text(file, limit=_MAX_BYTES).splitlines(), _MOST):
            text = line.strip()
            if text and "\0" not in text and not text.startswith(("#", "import ", "import\t")):
                yield from _elsewhere(site / text, site)


def _elsewhere(folder: Path, site: Path) -> Iterator[Path]:
    """Yield a folder if it is there, and not in site-packages, which is walked anyway."""
    with contextlib.suppress(OSError, RuntimeError):  # it may not be read; links in a circle
        goal = folder.resolve()
        if goal.is_dir() and not goal.is_relative_to(site.resolve()):
            yield goal


def _importable(folder: Path) -> Iterator[Path]:
    """Yield the packages and extension modules at the top of a folder: a checkout has builds and environments beside them."""
    return islice((entry for entry in _entries(folder) if entry.suffix == ".so" or _is_package(entry)), _MOST)


def _mapped(site: Path) -> Iterator[Path]:
    for finder in islice(sorted(site.glob("__editable___*_finder.py")), _MOST):
        mapping = _MAPPING.search(reading.text(finder, limit=_MAX_BYTES))
        places = map(Path, islice(_MAPPED.findall(mapping[1]) if mapping else (), _MOST))
        yield from filter(_is_package, places)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []  # what may not be read cannot be imported either


def _is_package(folder: Path) -> bool:
    try:
        return (folder / "__init__.py").is_file()
    except OSError:
        return False


def _unseen(site: Path, seen: tuple[Path, ...]) -> Iterator[str]:
    """Yield the distributions that are installed as editable (PEP 610) and of which nothing was found."""
    for file in islice(sorted(site.glob("*.dist-info/direct_url.json")), _MOST):
        try:
            document = json.loads(reading.text(file, limit=_MAX_BYTES))
            editable, url = document["dir_info"]["editable"], urlsplit(document["url"])
            home = Path(unquote(url.path)).resolve() if url.scheme == "file" else None
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError):
            continue  # RecursionError is a RuntimeError
        if editable and (home is None or not any(path.resolve().is_relative_to(home) for path in seen)):
            yield file.parent.name.removesuffix(".dist-info")
