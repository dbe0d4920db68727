"""The rules of the loader beside the loader itself: each file here is opened as CPython opens an extension, and then judged."""

from __future__ import annotations

import _ctypes
import ctypes
import os
import platform
import subprocess
from typing import TYPE_CHECKING

import pytest

from envbuilder.binaries.abi import check_files
from envbuilder.binaries.system import DEBIAN_12, System, this_system
from envbuilder.binaries.verdicts import Kind, Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from elf_forge import Forge

    from envbuilder.binaries.verdicts import ExtensionReport

MISSING_STD = "_ZNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEE13no_such_thingEv"
REAL_STD = "_ZNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEE5clearEv"


def opened(path: Path) -> str:
    """What the loader of this machine says: nothing where it takes the file."""
    try:
        library = ctypes.CDLL(str(path), mode=os.RTLD_NOW)
    except OSError as error:
        return str(error)
    _ctypes.dlclose(library._handle)  # otherwise its soname is taken for the tests that follow
    return ""


def judged(path: Path, *, system: System = DEBIAN_12) -> ExtensionReport:
    """What is said of a file here; in all tests but of LD_LIBRARY_PATH, the same as the loader says."""
    (extension,) = check_files([path], system=system).extensions
    if not system.variable:
        assert (extension.verdict is Verdict.OK) == (not opened(path)), (extension, opened(path))
    return extension


def rpath(*folders: str, new: bool = False) -> list[str]:
    return [f"-Wl,--{'enable' if new else 'disable'}-new-dtags,-rpath,{':'.join(folders)}", "-Wl,--allow-shlib-undefined"]


def test_rpath_reaches_past_a_library_that_has_runpath(forge: Forge) -> None:
    """RPATH of A, RUNPATH of B, C beside A: the one with RUNPATH asks no RPATH itself, and hands it on all the same."""
    forge.so("a/libc_.so.1", soname="libc_.so.1", defines=["c_"])
    forge.so("a/libb_.so.1", soname="libb_.so.1", uses=["c_"], needs=["a/libc_.so.1"], flags=rpath())
    forge.so("b/librun.so.1", soname="librun.so.1", needs=["a/libb_.so.1"], flags=rpath("$ORIGIN/only", new=True))
    (forge.root / "b/only").mkdir()
    (forge.root / "a/libb_.so.1").rename(forge.root / "b/only/libb_.so.1")
    path = forge.so("ext.so", needs=["b/librun.so.1"], flags=rpath("$ORIGIN/a", "$ORIGIN/b"))
    assert judged(path).verdict is Verdict.OK
    forge.so("b/librun.so.1", soname="librun.so.1", needs=["b/only/libb_.so.1", "a/libc_.so.1"], flags=rpath("$ORIGIN/only", new=True))
    assert judged(path).verdict is Verdict.MISSING_LIBRARY, "what it needs itself is not looked for there"


def test_a_path_among_the_needed_names_is_taken_as_it_is(forge: Forge) -> None:
    """A library linked without a soname is needed by the path it was linked by: it loads while it lies there."""
    library = forge.so("made/libbare.so", defines=["bare"])
    code = forge.file("code.s", ".data\n.dc.a bare\n")
    goal = forge.root / "ext.so"
    subprocess.run(["gcc", "-shared", "-nostdlib", "-o", goal, code, library], check=True)
    extension = judged(goal)
    assert (extension.verdict, extension.needed[0].found) == (Verdict.OK, "made/libbare.so")
    library.rename(forge.root / "libbare.so")
    assert judged(goal).verdict is Verdict.MISSING_LIBRARY


@pytest.mark.parametrize("style", ["gnu", "sysv"])
def test_who_asks_for_no_version_gets_the_oldest(forge: Forge, tmp_path: Path, style: str) -> None:
    """A name that its library keeps for those who were linked long ago only (name@V1, no default)."""
    script = tmp_path / "v.map"
    script.write_text("V1 { global: first; }; V2 { global: second; };")
    code = forge.file("code.s", ".text\none:.byte 0\ntwo:.byte 0\n.symver one,first@V1\n.symver two,second@V2\n.globl one,two\n")
    library = forge.root / "libver.so.1"
    flags = f"-Wl,-soname,libver.so.1,--version-script={script},--hash-style={style}"
    subprocess.run(["gcc", "-shared", "-nostdlib", flags, "-o", library, code], check=True)
    plain = forge.so("plain/libver.so.1", soname="libver.so.1", defines=["first", "second"])
    for name, loads in (("first", True), ("second", False)):
        path = forge.so(f"{name}.so", uses=[name], needs=[str(plain.relative_to(forge.root))], flags=rpath("$ORIGIN", new=True))
        extension = judged(path)
        assert extension.needed[0].found == "libver.so.1"
        assert (extension.verdict is Verdict.OK) == loads


@pytest.mark.parametrize("content", ["", "INPUT(libodd.so.1)\n", "\x7fELF and no more", "cut"])
def test_a_file_that_is_none_ends_the_search(forge: Forge, content: str) -> None:
    """A link that became a text on its way through a zip, say: the sound library in the next folder is not reached."""
    sound = forge.so("sound/libodd.so.1", soname="libodd.so.1", defines=["odd"])
    path = forge.so("ext.so", uses=["odd"], needs=["sound/libodd.so.1"], flags=rpath("$ORIGIN/first", "$ORIGIN/sound", new=True))
    first = forge.file("first/libodd.so.1", content)
    if content == "cut":
        first.write_bytes(sound.read_bytes()[:90])
    report = check_files([path])
    extension = judged(path)
    assert extension.verdict is Verdict.MISSING_LIBRARY
    assert extension.detail.startswith("first/libodd.so.1: ")
    assert [cause.kind for cause in report.causes] == [Kind.MALFORMED], "the file is there: it is not called absent"
    first.unlink()
    assert judged(path).verdict is Verdict.OK
    first.symlink_to("nowhere")
    assert judged(path).verdict is Verdict.OK, "a link into nothing is passed over"


def test_ld_library_path_comes_before_runpath_and_after_rpath(forge: Forge) -> None:
    """Another build of a library there wins over the one beside the extension: `module load` does that to people."""
    forge.so("near/libtwice.so.1", soname="libtwice.so.1", defines=["fresh"])
    forge.so("far/libtwice.so.1", soname="libtwice.so.1", defines=["stale"])
    system = System(name="with LD_LIBRARY_PATH", variable=(str(forge.root / "far"),))
    new = forge.so("new.so", uses=["fresh"], needs=["near/libtwice.so.1"], flags=rpath("$ORIGIN/near", new=True))
    old = forge.so("old.so", uses=["fresh"], needs=["near/libtwice.so.1"], flags=rpath("$ORIGIN/near"))
    assert judged(new, system=system).needed[0].found == "far/libtwice.so.1"
    assert judged(new, system=system).verdict is not Verdict.OK
    assert judged(old, system=system).verdict is Verdict.OK
    assert judged(new).verdict is Verdict.OK


def test_the_runtimes_names_need_the_runtime(forge: Forge) -> None:
    """C++ linked with gcc in place of g++: nobody brings libstdc++ then, whether the name exists or not."""
    runtime = forge.so("stub/libstdc++.so.6", soname="libstdc++.so.6", defines=[REAL_STD])
    assert runtime.is_file()
    for name in (REAL_STD, MISSING_STD):
        extension = judged(forge.so(f"{name}.so", uses=[name]))
        assert (extension.verdict, [it.kind for it in extension.missing]) == (Verdict.UNDEFINED_SYMBOLS, [Kind.NOT_LINKED])
    assert judged(forge.so("linked.so", uses=[REAL_STD], needs=["stub/libstdc++.so.6"])).verdict is Verdict.OK
    assert judged(forge.so("c.so", uses=["__cxa_atexit"])).verdict is Verdict.OK, "glibc's, whatever its name"


def test_the_runtime_comes_with_a_library_that_needs_it(forge: Forge) -> None:
    forge.so("stub/libstdc++.so.6", soname="libstdc++.so.6", defines=[REAL_STD])
    forge.so("libmid.so.1", soname="libmid.so.1", needs=["stub/libstdc++.so.6"], flags=rpath())
    path = forge.so("ext.so", uses=[REAL_STD], needs=["libmid.so.1"], flags=rpath("$ORIGIN", new=True))
    assert judged(path).verdict is Verdict.OK


def test_an_object_file_is_no_extension(forge: Forge) -> None:
    """`gcc -c -o x.abi3.so`: of a sound ELF file, the loader takes shared objects only."""
    code = forge.file("code.s", ".text\n.globl PyInit_x\nPyInit_x: .byte 0\n")
    goal = forge.root / "x.abi3.so"
    subprocess.run(["gcc", "-c", "-o", goal, code], check=True)
    extension = judged(goal)
    assert extension.verdict is Verdict.NOT_ELF
    assert "object file" in extension.detail


def test_this_machines_system_keeps_both_kinds_of_folders_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked last, a folder of LD_LIBRARY_PATH would lose against a RUNPATH that it wins against."""
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path};/nowhere/at/all")
    system = this_system(platform.machine())
    assert system.variable == (str(tmp_path),)
    assert str(tmp_path) not in system.folders
