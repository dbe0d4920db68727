"""Sources from git: a commit as one archive whose bytes depend on nothing but its files.

Git names a commit by a sha1 over its history; a lock wants the sha256 of what is built from. So the commit's files are
written as a tar with sorted names, plain modes and no times (ustar and pax, POSIX.1-2001), and that file is locked and
kept like any other. Git's own settings say how a repository is reached: a mirror is a `url.<mirror>.insteadOf`.
"""

from __future__ import annotations

import posixpath
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from envbuilder.errors import FetchError, HashMismatchError, ProgramError
from envbuilder.files import sha256_file, storage_errors
from envbuilder.process import run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envbuilder.store.cache import Store, Wanted

_FORGE = "https://github.com"  # where vLLM's own build files fetch from
# A repository's attributes may leave files out of an archive and write a branch's state into others; we want what was committed.
_AS_COMMITTED = "* -export-ignore -export-subst -text -eol -filter -ident -working-tree-encoding\n"


def archive_name(repository: str, commit: str) -> str:
    return f"{repository.partition('/')[2]}-{commit}.tar"


def write_archive(repository: str, revision: str, goal: Path) -> str:
    """Fetch one commit of a repository ("owner/name"), write its archive, and return the commit's name (40 hex digits).

    Raises FetchError when git cannot get it, ProgramError without git, StorageError for a disk that is full.
    """
    goal.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="git-", dir=goal.parent) as folder:
        git = ["git", "-C", folder, "-c", "core.autocrlf=false", "-c", "tar.umask=0022"]
        what = f"fetching {repository} at {revision}"
        run([*git, "init", "--quiet", "--bare"], what=what, capture=True)
        _write_attributes(Path(folder))
        address = f"{_FORGE}/{repository}"
        try:
            # A prompt for a password is no answer: nobody may be there to give it.
            run(
                ["env", "GIT_TERMINAL_PROMPT=0", *git, "fetch", "--quiet", "--no-tags", "--depth=1", address, revision],
                what=what,
                capture=True,
            )
        except ProgramError as error:
            raise FetchError(
                f"git cannot get {repository} at {revision}",
                why=error.why,
                next=f"Reach {address}, or name a mirror: git config --global url.<mirror>.insteadOf {_FORGE}/",
            ) from error
        commit = run([*git, "rev-parse", "--verify", "FETCH_HEAD^{commit}"], what=what, capture=True).stdout.strip()
        raw = Path(folder) / "raw.tar"
        run([*git, "archive", "--format=tar", f"--output={raw}", commit], what=what, capture=True)
        _rewrite(raw, goal, top=f"{repository.partition('/')[2]}-{commit}")
    return commit


def _write_attributes(repository: Path) -> None:
    (repository / "info").mkdir(exist_ok=True)
    (repository / "info" / "attributes").write_text(_AS_COMMITTED, encoding="ascii")


def _rewrite(raw: Path, goal: Path, *, top: str) -> None:
    """Write the archive's files again, with nothing that another git, or another day, would write otherwise.

    A link to a file becomes that file; other links, and submodules (empty folders here), hold nothing to build from.
    """
    with tarfile.open(raw, "r:") as source, storage_errors(goal), tarfile.open(goal, "w:", format=tarfile.PAX_FORMAT) as archive:
        for path, entry in sorted(_files(source)):
            info = tarfile.TarInfo(f"{top}/{path}")
            info.size, info.mode = entry.size, 0o755 if entry.mode & 0o100 else 0o644
            archive.addfile(info, source.extractfile(entry))


def _files(source: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    entries = {entry.name: entry for entry in source}
    for path, entry in entries.items():
        found: tarfile.TarInfo | None = entry
        seen: set[str] = set()
        where = path
        while found is not None and found.issym() and where not in seen:
            seen.add(where)
            where = posixpath.normpath(posixpath.join(posixpath.dirname(where), found.linkname))
            found = entries.get(where)
        if found is not None and found.isreg():
            yield path, found


def fetch_commits(wanted: Iterable[tuple[str, str, Wanted]], *, store: Store, offline: bool = False) -> None:
    """Bring the archives of commits into the store: (repository, commit, file) each.

    Raises FetchError when one cannot be had, HashMismatchError when the commit's files are not the locked ones.
    """
    for repository, commit, item in wanted:
        if store.find(item.sha256, item.filename, size=item.size):
            continue
        if offline:
            raise FetchError(
                f"{item.filename} is not in the store", why=f"{repository} was not asked (--offline).", next="Run once without --offline."
            )
        with store.incoming(item.sha256) as partial:
            write_archive(repository, commit, partial)
            found = sha256_file(partial)
            if found != item.sha256:
                partial.unlink()
                raise HashMismatchError(
                    f"{repository} at {commit} is not what the lock names",
                    why=f"Its archive has sha256:{found}, the lock says sha256:{item.sha256}.",
                    next="Do not build from it. If the lock was made by another envbuilder, make it again.",
                )
            store.admit(partial, item.sha256, item.filename)
