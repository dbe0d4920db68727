"""Getting locked files into the store: from whatever source has them, each proved by its sha256.

Every configured source is tried in turn, the default index after them; PyTorch's own index, which uv knows by name,
only for files that nobody else has. A source that cannot be reached is an obstacle only for the files that no other
source has, and is asked once, not once per file.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import requests
import requests.adapters
import urllib3
from packaging.utils import parse_wheel_filename

from envbuilder.errors import FetchError, HashMismatchError, ProgramError, StorageError
from envbuilder.files import free_bytes, human_size, remove_tree, sha256_file, storage_errors
from envbuilder.store.index import (
    TIMEOUT_S,
    OddAnswerError,
    Offer,
    SourceUnreachableError,
    describe,
    local_path,
    never_answered,
    offers_of_index,
    offers_of_links,
)
from envbuilder.store.settings import Place, Settings, uv_arguments
from envbuilder.uv import run_uv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from envbuilder.console import Console, Progress
    from envbuilder.store.cache import Store, Wanted

_WORKERS = 8
_CHUNK = 1 << 18
_ATTEMPTS = 4  # of one download, each resuming the last
_SPARE_BYTES = 200_000_000  # left free on the disk beside what is fetched


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What a fetch did: how many files were in the store already, how many came in, and their bytes."""

    present: int
    added: int
    added_bytes: int


def fetch(
    wanted: Sequence[Wanted],
    *,
    store: Store,
    settings: Settings,
    console: Console,
    offline: bool = False,
    torch_backend: str | None = None,
    offered: Callable[[Wanted], Iterable[Offer]] | None = None,
) -> Fetched:
    """Bring every wanted file into the store; `offered` says who has one, where that is not for indexes to say.

    Raises HashMismatchError when the only sources of a file have other bytes under its name, FetchError when nobody
    has a file, StorageError when the disk cannot take them.
    """
    missing = [item for item in wanted if store.find(item.sha256, item.filename, size=item.size) is None]
    if not missing:
        return Fetched(present=len(wanted), added=0, added_bytes=0)
    total = sum(item.size for item in missing)
    _check_room(store, total)
    with console.progress("fetching", total) as progress:
        fetcher = _Fetcher(store=store, settings=settings, offline=offline, torch_backend=torch_backend, progress=progress, offered=offered)
        fetcher.fetch_all(missing)
    added = sum(store.path(item.sha256, item.filename).stat().st_size for item in missing)
    return Fetched(present=len(wanted) - len(missing), added=len(missing), added_bytes=added)


def _check_room(store: Store, total: int) -> None:
    with storage_errors(store.root):
        store.root.mkdir(parents=True, exist_ok=True)
    free = free_bytes(store.root)
    if free < total + _SPARE_BYTES:
        raise StorageError(
            f"not enough room in {store.root}",
            why=f"{human_size(total)} are to be fetched, and {human_size(free)} are free.",
            next="Free some space, or set ENVBUILDER_CACHE to a folder on another disk.",
        )


@dataclass
class _Trouble:
    """What each source said about one file that could not be had."""

    item: Wanted
    answers: list[str] = field(default_factory=list)
    mismatched: bool = False


class _MismatchError(Exception):
    """A source has other bytes under the wanted name."""


@dataclass
class _Fetcher:
    store: Store
    settings: Settings
    offline: bool
    torch_backend: str | None
    progress: Progress
    offered: Callable[[Wanted], Iterable[Offer]] | None = None
    _unreachable: dict[str, str] = field(default_factory=dict)
    _local: threading.local = field(default_factory=threading.local)
    _stop: threading.Event = field(default_factory=threading.Event)

    def fetch_all(self, items: Sequence[Wanted]) -> None:
        troubles: list[_Trouble] = []
        with ThreadPoolExecutor(_WORKERS) as pool:
            # Largest first: the longest download decides when all are done.
            tasks = [pool.submit(self._fetch_one, item) for item in sorted(items, key=lambda item: -item.size)]
            try:
                troubles = [trouble for task in as_completed(tasks) if (trouble := task.result())]
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        if troubles:
            raise _error(troubles, offline=self.offline)

    def _fetch_one(self, item: Wanted) -> _Trouble | None:
        trouble = _Trouble(item)
        with self.store.incoming(item.sha256) as partial:
            if self.store.find(item.sha256, item.filename, size=item.size):
                self.progress.advance(item.size)
                return None
            for offer in self._offers(item, trouble):
                try:
                    self._take(offer, item, partial)
                except _MismatchError as error:
                    trouble.mismatched = True
                    trouble.answers.append(f"{offer.place.shown}: {error}")
                except SourceUnreachableError as error:
                    if self._stop.is_set():
                        return trouble
                    trouble.answers.append(f"{offer.place.shown}: {error}")
                else:
                    self.store.admit(partial, item.sha256, item.filename)
                    return None
        return trouble

    # -- who has it ----------------------------------------------------------------------------------------------

    def _offers(self, item: Wanted, trouble: _Trouble) -> Iterator[Offer]:
        """Yield every offer of a file, best source first, asking a source only when those before it failed."""
        if self.offered:
            yield from self.offered(item)
            return
        for place, ask in self._questions(item):
            if self.offline and local_path(place.location) is None:
                trouble.answers.append(f"{place.shown}: not asked (--offline)")
                continue
            if place.location in self._unreachable:
                trouble.answers.append(f"{place.shown}: {self._unreachable[place.location]}")
                continue
            try:
                offers = list(ask())
            except SourceUnreachableError as error:
                if not isinstance(error, OddAnswerError):
                    self._unreachable[place.location] = str(error)
                trouble.answers.append(f"{place.shown}: {error}")
                continue
            if not offers:
                trouble.answers.append(f"{place.shown}: has no such file")
            for offer in offers:
                if offer.sha256 in {None, item.sha256}:
                    yield offer
                else:
                    trouble.mismatched = True
                    trouble.answers.append(f"{place.shown}: has the name with sha256:{offer.sha256}")

    def _questions(self, item: Wanted) -> Iterator[tuple[Place, Callable[[], Iterable[Offer]]]]:
        for place in self.settings.find_links:
            yield place, lambda place=place: offers_of_links(place, item.filename, self._session())  # type: ignore[misc]
        for place in self.settings.all_indexes:
            yield place, lambda place=place: offers_of_index(place, item.project, item.filename, self._session())  # type: ignore[misc]
        if self.torch_backend and item.project.startswith("torch"):
            place = Place(location=f"torch-backend:{self.torch_backend}", setting="PyTorch's own index, as uv knows it")
            yield place, lambda: self._ask_uv(place, item)

    def _ask_uv(self, place: Place, item: Wanted) -> list[Offer]:
        """Ask PyTorch's own index, which uv knows under the name of a backend; the answer is a lock (PEP 751) with an address."""
        _, version, _, tags = parse_wheel_filename(item.filename)
        interpreter = next(iter(tags)).interpreter
        python = f"{interpreter[2]}.{interpreter[3:]}" if interpreter.startswith("cp3") else "3.11"
        with tempfile.TemporaryDirectory() as folder:
            asked = Path(folder) / "requirements.in"
            asked.write_text(f"{item.project}=={version}\n", encoding="utf-8")
            options: list[str | Path] = [
                "pip",
                "compile",
                asked,
                "--no-deps",
                "--format",
                "pylock.toml",
                "--torch-backend",
                str(self.torch_backend),
                "--python-version",
                python,
                "--quiet",
            ]
            _, variables = uv_arguments(self.settings)  # certificates and proxy; where to ask is the backend's business
            what = "asking PyTorch's index"
            try:
                answer = run_uv(options, cache=self.store.uv_cache, what=what, variables=variables, capture=True, timeout_s=120)
            except ProgramError as error:
                raise SourceUnreachableError(error.why.splitlines()[-1] if error.why else error.what) from error
        wheels = [wheel for package in tomllib.loads(answer.stdout).get("packages", []) for wheel in package.get("wheels", [])]
        return [
            Offer(place=place, location=wheel["url"], sha256=wheel.get("hashes", {}).get("sha256"))
            for wheel in wheels
            if unquote(wheel.get("url", "")).rpartition("/")[2] == item.filename
        ]

    # -- taking it -----------------------------------------------------------------------------------------------

    def _take(self, offer: Offer, item: Wanted, partial: Path) -> None:
        """Put the offered file together at `partial`, proved by its hash."""
        if path := offer.path:
            self._copy(path, item, partial)
            return None
        host = urlsplit(offer.location).netloc
        if host in self._unreachable:
            raise SourceUnreachableError(self._unreachable[host])
        for attempt in range(1, _ATTEMPTS + 1):
            before = _size(partial)
            try:
                return self._download(offer.location, item, partial)
            except requests.RequestException as error:
                if never_answered(error):
                    self._unreachable[host] = describe(error)
                # Where nothing came, urllib3 has tried again already; what broke off goes on from there.
                if attempt == _ATTEMPTS or _size(partial) <= before:
                    raise SourceUnreachableError(_unfinished(error, partial, item)) from error
        return None

    def _copy(self, path: Path, item: Wanted, partial: Path) -> None:
        try:
            found = sha256_file(path)
        except OSError as error:
            raise SourceUnreachableError(error.strerror or str(error)) from error
        if found != item.sha256:
            raise _MismatchError(f"{path.name} there has sha256:{found}")
        with storage_errors(partial):
            shutil.copyfile(path, partial)
        self.progress.advance(item.size)

    def _download(self, url: str, item: Wanted, partial: Path) -> None:
        """Stream to `partial`, going on after what is there already (RFC 9110, range requests)."""
        digest = hashlib.sha256()
        have = _hash_into(digest, partial)
        if have and digest.hexdigest() == item.sha256:
            return  # an earlier run was killed between the last byte and the rename
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
        with self._session().get(url, stream=True, headers=headers, timeout=TIMEOUT_S) as response:
            refused = have > 0 and response.status_code == requests.codes.requested_range_not_satisfiable
            resumed = have > 0 and response.status_code == requests.codes.partial_content
            if not refused:
                response.raise_for_status()
                if not resumed:
                    digest, have = hashlib.sha256(), 0
                self.progress.advance(have)
                self._write(response, item, partial, digest, have=have)
        if not refused and digest.hexdigest() == item.sha256:
            return
        size = _size(partial)
        remove_tree(partial)
        if not (refused or resumed):
            raise _MismatchError(f"it sent {human_size(size)} with sha256:{digest.hexdigest()}")
        # What was there may have come from another source, or be damaged: only a download in one piece tells.
        self._download(url, item, partial)

    def _write(self, response: requests.Response, item: Wanted, partial: Path, digest: hashlib._Hash, *, have: int) -> None:
        with storage_errors(partial), partial.open("ab" if have else "wb") as file:
            for chunk in response.iter_content(_CHUNK):
                if self._stop.is_set():
                    raise SourceUnreachableError("stopped")
                digest.update(chunk)
                file.write(chunk)
                self.progress.advance(len(chunk))
                have += len(chunk)
                if 0 < item.size < have:
                    break  # another file, then: no need to see all of it

    def _session(self) -> requests.Session:
        """One session per thread: requests' sessions are not made for sharing."""
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = new_session(self.settings)
        return session


def new_session(settings: Settings) -> requests.Session:
    """Return a session that knows the user's certificates and proxy, and tries again where that may help."""
    session = requests.Session()
    retry = urllib3.Retry(
        total=3,
        connect=1,
        backoff_factor=0.4,
        status_forcelist=(429, 500, 502, 503, 504),
        raise_on_status=False,
        respect_retry_after_header=False,  # it may name an hour, and nobody would know what we are waiting for
    )
    for scheme in ("https://", "http://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=retry))
    session.headers["User-Agent"] = "envbuilder"
    if settings.ca_bundle:
        session.verify = settings.ca_bundle
    if settings.proxy:
        session.proxies = {"http": settings.proxy, "https": settings.proxy}
    return session


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _hash_into(digest: hashlib._Hash, path: Path) -> int:
    """Hash what is there of an interrupted download; return its length."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        return file.tell()


def _unfinished(error: requests.RequestException, partial: Path, item: Wanted) -> str:
    have = _size(partial)
    if have and not isinstance(error, requests.HTTPError):
        return f"broke off after {human_size(have)}" + (f" of {human_size(item.size)}" if item.size else "")
    return describe(error)


def _error(troubles: Sequence[_Trouble], *, offline: bool) -> FetchError | HashMismatchError:
    """One error for all files that are missing: the first few whole, the rest counted."""
    shown = sorted(troubles, key=lambda trouble: trouble.item.filename)[:3]
    lines: list[str] = []
    for trouble in shown:
        lines += [
            f"{trouble.item.filename} (sha256:{trouble.item.sha256})",
            *(f"  {answer}" for answer in trouble.answers or ["no source is configured"]),
        ]
    if len(troubles) > len(shown):
        lines.append(f"… and {len(troubles) - len(shown)} more files")
    if mismatched := [trouble for trouble in troubles if trouble.mismatched]:
        return HashMismatchError(
            f"{mismatched[0].item.filename} is not the file in the lock",
            why="\n".join(lines),
            next="A source serves other bytes under that name: remove it from your settings, or lock again if you trust it.",
        )
    count = f"{len(troubles)} files" if len(troubles) > 1 else troubles[0].item.filename
    hint = "Run once without --offline" if offline else "Check the network"
    return FetchError(
        f"no source has {count}",
        why="\n".join(lines),
        next=f"{hint}, or put the file in a folder and name it in PIP_FIND_LINKS or UV_FIND_LINKS (or an index that has it in PIP_EXTRA_INDEX_URL or UV_INDEX).",
    )
