"""Getting Debian packages into the store from the mirrors that apt is set to.

ENVBUILDER_DEBIAN_MIRROR names others (addresses or folders, separated by spaces), for a machine that has no apt, or
another distribution's.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import quote

from envbuilder.errors import FetchError
from envbuilder.store.cache import Wanted
from envbuilder.store.debian import APT, apt_sources
from envbuilder.store.fetch import Fetched, fetch
from envbuilder.store.index import Offer, local_path
from envbuilder.store.settings import Place

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from envbuilder.console import Console
    from envbuilder.store.cache import Store
    from envbuilder.store.debian import DebianPackage
    from envbuilder.store.settings import Settings

VARIABLE = "ENVBUILDER_DEBIAN_MIRROR"


def fetch_packages(
    packages: Sequence[DebianPackage], *, store: Store, settings: Settings, console: Console, offline: bool = False
) -> Fetched:
    """Bring every package into the store. Raises HashMismatchError, FetchError or StorageError, as for wheels."""
    paths = {package.sha256: package.path for package in packages}
    places = [place for place in mirrors() if not offline or local_path(place.location)]

    def offered(item: Wanted) -> Iterator[Offer]:
        for place in places:
            if folder := local_path(place.location):  # a mirror's own tree, or just a folder of packages
                found = [path for path in (folder / paths[item.sha256], folder / item.filename) if path.is_file()]
                yield from (Offer(place=place, location=str(path), sha256=None) for path in found[:1])
            else:
                yield Offer(place=place, location=f"{place.location.rstrip('/')}/{quote(paths[item.sha256])}", sha256=None)

    wanted = [Wanted(project=it.name, filename=it.filename, sha256=it.sha256, size=it.size) for it in packages]
    try:
        return fetch(wanted, store=store, settings=settings, console=console, offline=offline, offered=offered)
    except FetchError as error:
        raise FetchError(
            error.what,
            why=error.why,
            next=f"{VARIABLE} names mirrors or folders of the release that was locked; a point release drops older files from most mirrors.",
        ) from error


def mirrors(environ: Mapping[str, str] | None = None, *, apt: Path = APT) -> tuple[Place, ...]:
    """Return where Debian packages may be had, in the order in which places are tried."""
    env = os.environ if environ is None else environ
    named = [Place(location=word, setting=VARIABLE) for word in env.get(VARIABLE, "").split()]
    configured = [Place(location=source.uri, setting="apt's sources") for source in apt_sources(apt)]
    return tuple({place.location.rstrip("/"): place for place in (*configured[::-1], *named[::-1])}.values())[::-1]
