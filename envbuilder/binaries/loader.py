"""The dynamic loader's rules, applied to files: which libraries a file pulls in, and which of its symbols nobody defines.

Modelled on glibc (elf/dl-load.c, dl-lookup.c; ld.so(8)) as CPython uses it: an extension is opened with RTLD_NOW and
RTLD_LOCAL, so its references are looked up among the global scope, itself and the libraries it needs, transitively;
a needed name that is already loaded is taken as it is, wherever it lies. That last rule is how vLLM finds libtorch and
libcudart, which its own RUNPATH does not reach: torch is imported first.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections import Counter, deque

from envbuilder.binaries.elf import ElfFile, Reference, SymbolTable, elf_of, open_tables, references_of
from envbuilder.binaries.layout import MalformedElfError
from envbuilder.binaries.lookup import Provider, TableProvider, defines, provider_in
from envbuilder.binaries.source import FileSource
from envbuilder.binaries.symbols import owned_by_runtime, owned_by_torch
from envbuilder.binaries.system import DRIVER_SONAMES, PYTHON_SYMBOL, driver_symbol, named_by_system
from envbuilder.values import NamedTuple, made, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from envbuilder.binaries.elf import Tables
    from envbuilder.binaries.environment import TorchBuild
    from envbuilder.binaries.system import System

_MAX_HELD = 192 << 20  # bytes of symbol tables kept of all files together; a whole vLLM environment has 60 million
SYSTEM, DRIVER, ASSUMED = "system", "driver", "with torch's dependencies"
LIBSTDCXX, _LIBGCC = "libstdc++.so.6", "libgcc_s.so.1"
_PASSED_OVER = frozenset({errno.ENOENT, errno.EACCES})  # a link into nothing, a file that may not be read
# Loaded with the interpreter, before anything else: a copy under the same soname (torchvision ships one) never wins.
_ALWAYS_LOADED = frozenset({"libc.so.6", "libm.so.6", "ld-linux-aarch64.so.1", "ld-linux-x86-64.so.2", "libdl.so.2", "libpthread.so.0"})


class Catalog:
    """Reads each file and each folder once, and of each file only what is asked for."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()  # names found so far, by library
        self._budget = _MAX_HELD
        self._files: dict[str, tuple[FileSource, Tables]] = {}
        self._elves: dict[str, ElfFile | MalformedElfError] = {}
        self._providers: dict[str, Provider] = {}
        self._given: dict[str, tuple[Reference, ...]] = {}  # references of files that are not here
        self._references: dict[tuple[str, frozenset[str]], tuple[Reference, ...]] = {}
        self._folders: dict[str, frozenset[str]] = {}

    def put(self, path: str, elf: ElfFile, symbols: SymbolTable) -> None:
        """Make a file known that is not here."""
        self._elves[path], self._given[path], self._providers[path] = elf, symbols.undefined, TableProvider(symbols)
        folder, _, name = path.rpartition("/")
        self._folders[folder] = self._folders.get(folder, frozenset()) | {name}

    def elf(self, path: str) -> ElfFile:
        """Raises MalformedElfError, as often as it is asked for."""
        known = self._elves.get(path)
        if known is None:
            try:
                with self._opened(path) as tables:
                    known = elf_of(tables)
            except MalformedElfError as error:
                known = error
            self._elves[path] = known
        if isinstance(known, MalformedElfError):
            raise known
        return known

    def provider(self, path: str) -> Provider:
        """Return a library as something in which names are looked up. Raises MalformedElfError."""
        if path not in self._providers:
            with self._opened(path) as tables:
                provider = provider_in(tables)
            self._hold(path, provider.weight)
            self._providers[path] = provider
        return self._providers[path]

    def defines(self, path: str, name: str) -> bool:
        """Tell whether a library defines a name, for a reference without version. Raises MalformedElfError."""
        if path in self._providers:
            return not self._providers[path].without({name})
        with self._opened(path) as tables:
            return defines(tables, name)

    def references(self, path: str, *, but_to: frozenset[str]) -> tuple[Reference, ...]:
        """Return what a file cannot do without, but for Python's names and versioned symbols of some sonames.

        Raises MalformedElfError.
        """
        if path in self._given:
            return tuple(it for it in self._given[path] if not it.weak and it.library not in but_to and not PYTHON_SYMBOL.match(it.name))
        if (path, but_to) not in self._references:
            with self._opened(path) as tables:
                references = references_of(tables, weak=False, but_to=but_to, but=PYTHON_SYMBOL.match)
            self._hold(path, sum(len(name) for name, *_ in references))
            self._references[path, but_to] = references
        return self._references[path, but_to]

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[Tables]:
        """Open a file, whose outer structure is read the first time only; one that cannot be opened is as good as malformed."""
        source, tables = self._files.get(path) or (FileSource(path), None)
        try:
            with source:
                if tables is None:
                    tables = open_tables(source)
                    self._files[path] = source, tables
                yield tables
        except OSError as error:
            raise MalformedElfError(error.strerror or str(error), is_elf=False) from error

    def _hold(self, path: str, amount: int) -> None:
        """Keep the sum within bounds: each file's tables are, but an environment may hold many hostile files."""
        self._budget -= amount
        if self._budget < 0:
            raise MalformedElfError(f"with {path}, the symbols of all files exceed {_MAX_HELD >> 20} MB")

    def readable(self, path: str) -> bool:
        """Tell whether a file is an ELF file that keeps its word."""
        try:
            self.elf(path)
        except MalformedElfError:
            return False
        return True

    def listing(self, folder: str) -> frozenset[str]:
        """Return the names in a folder, none if there is no such folder; one listing answers for all names."""
        names = self._folders.get(folder)
        if names is None:
            try:
                names = frozenset(os.listdir(folder))  # noqa: PTH208 - names are wanted, of 200 folders, not Path objects
            except OSError:
                names = frozenset()
            self._folders[folder] = names
        return names


class Dependency(NamedTuple):
    """A needed soname, who needs it, and where it was found: a path, SYSTEM, DRIVER, ASSUMED, or None.

    `reason`: which file made the loader give up, and why (`PATH: why`); empty where there is none of that name.
    """

    soname: str
    needed_by: str
    found: str | None
    reason: str = ""


@value
class Closure:
    """A file and all libraries that are loaded because of it, in the loader's order (breadth first)."""

    members: tuple[str, ...]
    dependencies: tuple[Dependency, ...]

    def missing(self) -> tuple[Dependency, ...]:
        return tuple(dependency for dependency in self.dependencies if dependency.found is None)

    @functools.cached_property
    def places(self) -> frozenset[str | None]:
        return frozenset(dependency.found for dependency in self.dependencies)

    @functools.cached_property
    def from_system(self) -> frozenset[str]:
        return frozenset(dependency.soname for dependency in self.dependencies if dependency.found == SYSTEM)


class Unresolved(NamedTuple):
    """A symbol that nobody in scope defines; `needed_by` is the file that asks for it."""

    reference: Reference
    needed_by: str


@value
class Process:
    """What is loaded before an extension is: names that are taken as they are, and files whose symbols all can see.

    `from_system`: base libraries that all can see. `assumed`: sonames that are taken to be there although no file of
    that name is (a torch wheel's CUDA libraries).
    """

    loaded: Mapping[str, str] = made(default_factory=dict)
    visible: tuple[str, ...] = ()
    from_system: frozenset[str] = frozenset()
    assumed: frozenset[str] = frozenset()


class Loader:
    """Resolves files of one machine on one system, in a process that has loaded something already."""

    def __init__(
        self, catalog: Catalog, system: System, *, machine: str, process: Process | None = None, fallback: Iterable[str] = ()
    ) -> None:
        self._catalog, self._system, self._machine = catalog, system, machine
        self._process = process or Process()
        self._settled = frozenset(self._process.loaded.values())
        self._fallback = tuple(fallback)

    def closure(self, root: str) -> Closure:
        """Follow the needed names of a file. Raises MalformedElfError if the file itself cannot be read."""
        loaded = dict(self._process.loaded)
        members = [root]
        dependencies: list[Dependency] = []
        queue: deque[tuple[str, tuple[str, ...]]] = deque([(root, ())])
        self._note(loaded, root)
        while queue:
            path, inherited = queue.popleft()
            elf = self._catalog.elf(path)
            # A file with RUNPATH asks no RPATH, not even its own; but what it loads asks that of those who loaded it.
            chain = inherited if elf.runpath else (*self._present(elf.rpath, path), *inherited)
            folders = (*self._system.variable, *self._present(elf.runpath, path)) if elf.runpath else (*chain, *self._system.variable)
            for soname in elf.needed:
                found, reason = self._found(soname, path, loaded, folders)
                dependencies.append(Dependency(soname, path, found, reason))
                if found is None or found in {SYSTEM, DRIVER, ASSUMED} or found in members:
                    continue
                members.append(found)
                self._note(loaded, found)
                queue.append((found, chain))
        return Closure(members=tuple(members), dependencies=tuple(dependencies))

    def _present(self, paths: tuple[str, ...], origin: str) -> tuple[str, ...]:
        """Return the folders of a search path that are there: one may name thousands that are not, and for each needed name again."""
        return tuple(filter(self._catalog.listing, _expand(paths, origin)))

    def unresolved(self, closure: Closure) -> tuple[Unresolved, ...]:
        """Return the strong references that nobody defines, of the root and of what is newly loaded for it."""
        scope = dict.fromkeys((*closure.members, *self._process.visible))
        rest: list[Unresolved] = []
        for number, path in enumerate(closure.members):
            if number == 0 or path not in self._settled:
                rest += [Unresolved(reference=reference, needed_by=path) for reference in self._missing(path, scope, closure)]
        return tuple(rest)

    def refused_versions(self, closure: Closure) -> tuple[tuple[str, str, str], ...]:
        """Return (soname, version, needed by) for each version that the library which was found does not define."""
        newly = [path for number, path in enumerate(closure.members) if number == 0 or path not in self._settled]
        found = {(dependency.needed_by, dependency.soname): dependency.found for dependency in closure.dependencies}
        return tuple(
            (need.library, need.version, path)
            for path in newly
            for need in self._catalog.elf(path).requires
            if not need.weak and not self._defines(found.get((path, need.library)), need.version)
        )

    def _defines(self, found: str | None, version: str) -> bool:
        match found:
            case None:
                return True  # absent altogether, and told as such
            case path if path in {DRIVER, ASSUMED}:
                return True  # not here to be asked
            case path if path == SYSTEM:
                return self._system.defines(version)
            case path:
                provides = self._catalog.elf(path).provides
                return not provides or version in provides  # without any version the loader only warns

    def _missing(self, path: str, scope: Collection[str], closure: Closure) -> list[Reference]:
        # The libraries that answered most so far come first: most names are found there, and many need not be opened.
        answers = self._catalog.answers
        members = sorted(
            (member for member in scope if member != path), key=answers.__getitem__, reverse=True
        )  # no file defines what it refers to
        references = self._catalog.references(path, but_to=self._judged_by_version(closure))
        rest = {it.name for it in references if it.version is None}
        if members and answers[members[0]]:
            rest = self._without(members[0], rest)
        needed = list(self._not_brought((it for it in references if it.version is not None or it.name in rest), closure))
        rest = {it.name for it in needed if it.version is None}
        # A version was found in a certain library when the file was linked: that one is asked first.
        at = {dependency.soname: dependency.found for dependency in closure.dependencies if dependency.found in scope}
        versioned = [it for it in needed if it.version is not None and not self._defined_at(at.get(it.library or ""), it)]
        for member in members:
            if not rest and not versioned:
                break
            rest = self._without(member, rest)
            versioned = [reference for reference in versioned if not self._catalog.provider(member).satisfies(reference)]
        return [*(Reference(name, weak=False) for name in sorted(rest)), *versioned]

    def _without(self, member: str, names: set[str]) -> set[str]:
        """Return the names that a library does not define, and remember how many it did."""
        rest = self._catalog.provider(member).without(names)
        self._catalog.answers[member] += len(names) - len(rest)
        return rest

    def _defined_at(self, path: str | None, reference: Reference) -> bool:
        return path is not None and self._catalog.provider(path).satisfies(reference)

    def _judged_by_version(self, closure: Closure) -> frozenset[str]:
        """The base libraries: a versioned reference to one of them is judged by the version, not by its name."""
        elsewhere = {dependency.soname for dependency in closure.dependencies if dependency.found != SYSTEM}
        return self._system.sonames - elsewhere

    def _not_brought(self, references: Iterable[Reference], closure: Closure) -> Iterator[Reference]:
        """Yield what must have a definition in a file here, and does not come from outside: system, driver, torch's CUDA."""
        loaded, driver, assumed = closure.from_system | self._process.from_system, DRIVER in closure.places, ASSUMED in closure.places
        if None in closure.places:
            loaded |= {LIBSTDCXX}  # whatever is missing may bring it
        for reference in references:
            name = reference.name
            if reference.version is None and (_from_runtime(name, loaded) or named_by_system(name, loaded)):
                continue
            if (driver and driver_symbol(name)) or (assumed and not name.startswith("_Z") and not owned_by_torch(name)):
                continue
            yield reference

    def _found(self, soname: str, needed_by: str, loaded: Mapping[str, str], folders: Iterable[str]) -> tuple[str | None, str]:
        """Return where a needed name is found, and if it is not because of a file that cannot be loaded, which and why."""
        try:
            if "/" not in soname:
                return self._locate(soname, loaded, folders), ""
            # A library that was linked without a soname: its path is taken as it is, and nothing is searched.
            folder, _, name = os.path.abspath(_expand((soname,), needed_by)[0]).rpartition("/")  # noqa: PTH100 - as the loader: no Path
            return loaded.get(soname) or self._file(name, (folder,)), ""
        except MalformedElfError as error:
            return None, str(error)

    def _locate(self, soname: str, loaded: Mapping[str, str], folders: Iterable[str]) -> str | None:
        if soname in _ALWAYS_LOADED and soname in self._system.sonames:
            return SYSTEM
        if soname in loaded:
            return loaded[soname]
        if path := self._file(soname, (*folders, *self._fallback)):
            return path
        if soname in self._system.sonames:
            return SYSTEM
        if soname in DRIVER_SONAMES:
            return DRIVER
        return self._file(soname, self._system.folders) or (ASSUMED if soname in self._process.assumed else None)

    def _file(self, soname: str, folders: Iterable[str]) -> str | None:
        """Return the first file of that name which the loader would take. Raises MalformedElfError if it would give up before."""
        paths = (f"{folder}/{soname}" for folder in folders if soname in self._catalog.listing(folder))
        return next((path for path in paths if self._fits(path)), None)

    def _fits(self, path: str) -> bool:
        """Tell whether the loader would take a file; one of another machine it passes over in silence.

        At one that is cut, or none, it gives up, wherever else the name may be found: that raises MalformedElfError.
        """
        try:
            return self._catalog.elf(path).machine == self._machine
        except MalformedElfError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _PASSED_OVER:
                return False
            raise MalformedElfError(f"{path}: {error}", is_elf=error.is_elf) from error

    def _note(self, loaded: dict[str, str], path: str) -> None:
        """From now on both the file's name and its soname stand for it."""
        loaded.setdefault(path.rpartition("/")[2], path)
        if soname := self._catalog.elf(path).soname:
            loaded.setdefault(soname, path)


def _from_runtime(name: str, loaded: Collection[str]) -> bool:
    """Tell whether the C++ runtime brings a name, and is loaded. Who loads libstdc++ loads libgcc with it."""
    return owned_by_runtime(name) and (LIBSTDCXX in loaded or (_LIBGCC in loaded and name.startswith("_Unwind_")))


def process_with(torch: TorchBuild | None, catalog: Catalog, system: System, *, machine: str, first: Iterable[str] = ()) -> Process:
    """Return what is loaded after `import torch`: its libraries and theirs, and the CUDA libraries it loads by path.

    `first`: libraries that the environment loads before all else.
    """
    closures: dict[str, Closure] = {}
    loader = Loader(catalog, system, machine=machine, fallback=torch.cuda_folders if torch else ())
    for root in (*first, *((*torch.visible, *torch.preloaded, *torch.modules) if torch else ())):
        with contextlib.suppress(MalformedElfError):  # whoever needs this file will not find it loaded
            closures[root] = loader.closure(root)
    loaded: dict[str, str] = {}
    for path in (path for closure in closures.values() for path in closure.members):
        loaded.setdefault(path.rpartition("/")[2], path)
        if soname := catalog.elf(path).soname:
            loaded.setdefault(soname, path)
    missing = {dependency.soname for closure in closures.values() for dependency in closure.missing() if not dependency.reason}
    visible = [closures[root] for root in (torch.visible if torch else ()) if root in closures]
    return Process(
        loaded=loaded,
        visible=tuple(dict.fromkeys(path for closure in visible for path in closure.members)),
        from_system=frozenset(soname for closure in visible for soname in closure.from_system),
        assumed=torch.assumed | missing if torch and torch.bare else frozenset(),
    )


@functools.lru_cache(1 << 10)  # torch's libraries are in the closure of each extension
def _expand(paths: tuple[str, ...], origin: str) -> tuple[str, ...]:
    """Replace $ORIGIN by the folder of the file, and make the path one that compares."""
    folder = origin.rpartition("/")[0] or "/"
    return tuple(os.path.normpath(path.replace("${ORIGIN}", folder).replace("$ORIGIN", folder)) for path in paths)
