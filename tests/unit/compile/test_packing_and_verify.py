"""The wheel that is put together, and what is said where two of them differ."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import subprocess
import zipfile
from typing import TYPE_CHECKING

import pytest
from packaging.utils import parse_wheel_filename

from envbuilder.compile.packing import newest_glibc, owner_of, pack
from envbuilder.compile.verify import compare
from envbuilder.errors import VerificationError
from envbuilder.targets.model import Component

if TYPE_CHECKING:
    from pathlib import Path

PUBLISHED = {
    "vllm/__init__.py": b"published",
    "vllm/_C.abi3.so": b"published C",
    "vllm/fa2.so": b"published fa2",
    "vllm/fa3.so": b"published fa3",
    "vllm/tool.sh": b"#!/bin/sh",
    "vllm-0.23.0.dist-info/METADATA": b"Name: vllm\nVersion: 0.23.0\n",
    "vllm-0.23.0.dist-info/WHEEL": b"Tag: old",
    "vllm-0.23.0.dist-info/RECORD": b"old",
}
SOURCE = {"vllm/__init__.py": b"from the source", "vllm/tool.sh": b"#!/bin/sh", "setup.py": b""}
COMPONENTS = (
    Component(name="C", how="source", members=("vllm/_C.abi3.so",), reason="r"),
    Component(name="fa2", how="published", members=("vllm/fa2.so",), reason="r"),
    Component(name="fa3", how="omitted", members=("vllm/fa3*",), reason="r"),
)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = tmp_path / "vllm-0.23.0-2-cp38-abi3-manylinux_2_28_aarch64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in PUBLISHED.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o755 if name.endswith(".sh") else 0o644) << 16
            archive.writestr(entry, content)
    return path


@pytest.fixture
def built(tmp_path: Path) -> dict[str, Path]:
    return {"_C.abi3.so": library(tmp_path / "_C.abi3.so", "int f(void) { return 1; }")}


def library(path: Path, text: str, *flags: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.with_suffix(".c")
    source.write_text(text)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, source, *flags], check=True, capture_output=True)
    return path


def packed(folder: Path, published: Path, built: dict[str, Path], **changes: object) -> Path:
    arguments = {"source": SOURCE, "components": COMPONENTS, "build_tag": "1", **changes}
    return pack(folder, published=published, built=built, **arguments).path  # type: ignore[arg-type]


def test_each_file_comes_from_where_the_target_says(tmp_path: Path, published: Path, built: dict[str, Path]) -> None:
    with zipfile.ZipFile(packed(tmp_path / "out", published, built)) as wheel:
        assert wheel.read("vllm/__init__.py") == b"from the source"
        assert wheel.read("vllm/_C.abi3.so") == built["_C.abi3.so"].read_bytes()
        assert wheel.read("vllm/fa2.so") == b"published fa2"
        assert "vllm/fa3.so" not in wheel.namelist()
        assert "setup.py" not in wheel.namelist()


def test_the_wheel_is_named_and_tagged_as_what_it_is(tmp_path: Path, published: Path, built: dict[str, Path]) -> None:
    """An installer goes by the tags: x86_64's, or a glibc too old, would be refused or would not load."""
    path = packed(tmp_path / "out", published, built)
    name, version, build, tags = parse_wheel_filename(path.name)
    assert (name, str(version), build) == ("vllm", "0.23.0", (1, ""))
    assert {str(tag) for tag in tags} == {"cp38-abi3-manylinux_2_28_aarch64"}
    with zipfile.ZipFile(path) as wheel:
        assert b"Tag: cp38-abi3-manylinux_2_28_aarch64\n" in wheel.read("vllm-0.23.0.dist-info/WHEEL")


def test_a_newer_glibc_than_the_published_wheel_s_is_found_out(tmp_path: Path) -> None:
    """Compiled on a newer Debian, the same source may ask for more than the published wheel's tag promises."""
    path = library(tmp_path / "new.so", "#include <pthread.h>\nvoid *f(void) { return (void *)pthread_create; }")
    needs = subprocess.run(["gcc", "-print-prog-name=as"], check=True, capture_output=True)  # a gcc is there: its glibc is this machine's
    assert needs.returncode == 0
    assert newest_glibc([path], floor=17) >= 17
    assert newest_glibc([path], floor=99) == 99


def test_the_record_names_every_file_with_its_hash(tmp_path: Path, published: Path, built: dict[str, Path]) -> None:
    with zipfile.ZipFile(packed(tmp_path / "out", published, built)) as wheel:
        assert wheel.namelist()[-1] == "vllm-0.23.0.dist-info/RECORD"
        rows = {row[0]: row[1] for row in csv.reader(io.StringIO(wheel.read("vllm-0.23.0.dist-info/RECORD").decode()))}
        assert set(rows) == set(wheel.namelist())
        for name in set(rows) - {"vllm-0.23.0.dist-info/RECORD"}:
            digest = base64.urlsafe_b64encode(hashlib.sha256(wheel.read(name)).digest()).rstrip(b"=").decode()
            assert rows[name] == f"sha256={digest}"


def test_the_same_content_is_the_same_file_whatever_the_times_and_the_umask(
    tmp_path: Path, published: Path, built: dict[str, Path]
) -> None:
    first = packed(tmp_path / "one", published, built)
    os.utime(built["_C.abi3.so"], (1, 1))
    before = os.umask(0o077)
    try:
        built["_C.abi3.so"].chmod(0o600)
        second = packed(tmp_path / "two", published, built)
    finally:
        os.umask(before)
    assert first.read_bytes() == second.read_bytes()
    assert compare(first, second) == []


def test_a_file_that_nobody_accounts_for_is_an_error(tmp_path: Path, published: Path, built: dict[str, Path]) -> None:
    """A new extension in a new vLLM must not get into the wheel, or out of it, by chance."""
    with zipfile.ZipFile(published, "a") as archive:
        archive.writestr("vllm/_new_C.abi3.so", b"x")
    with pytest.raises(VerificationError) as error:
        packed(tmp_path / "out", published, built)
    assert "vllm/_new_C.abi3.so" in error.value.why


def test_an_extension_that_was_not_built_is_an_error(tmp_path: Path, published: Path) -> None:
    with pytest.raises(VerificationError, match="was not built"):
        packed(tmp_path / "out", published, {})


def test_what_is_other_than_published_is_told(tmp_path: Path, published: Path, built: dict[str, Path]) -> None:
    report = pack(tmp_path / "out", published=published, built=built, source=SOURCE, components=COMPONENTS, build_tag="1")
    assert report.differing == ["vllm/__init__.py"]
    assert report.left_out == {"fa3": 1}
    assert report.origins == {"built": 1, "published": 1, "source": 2, "metadata": 2}


def test_a_pattern_crosses_folders() -> None:
    component = Component(name="x", how="omitted", members=("vllm/third_party/deep_gemm/*",), reason="r")
    assert owner_of("vllm/third_party/deep_gemm/include/a/b.h", [component]) == component
    assert owner_of("vllm/third_party/other.py", [component]) is None


# -- where two wheels differ -------------------------------------------------------------------------------------


def wheel_with(tmp_path: Path, name: str, published: Path, content: Path) -> Path:
    return packed(tmp_path / name, published, {"_C.abi3.so": content})


@pytest.mark.parametrize(
    ("one", "two", "cause"),
    [
        ("tmpxft_00001_00", "tmpxft_00002_00", "process number"),
        ("_GLOBAL__N__11111111_4_a_cu", "_GLOBAL__N__22222222_4_a_cu", "seed"),
        ("/home/one/src/a.cu", "/home/two/src/a.cu", "path of the machine"),
        ("Nov 23 2026", "Nov 24 2026", "a date"),
        ("hello", "jello", ""),
    ],
)
def test_a_difference_is_placed_in_its_section_with_its_likely_cause(
    tmp_path: Path, published: Path, one: str, two: str, cause: str
) -> None:
    paths = [library(tmp_path / str(n) / "_C.abi3.so", f'const char *s(void) {{ return "{text}"; }}') for n, text in enumerate((one, two))]
    differences = compare(*(wheel_with(tmp_path, f"out{n}", published, path) for n, path in enumerate(paths)))
    in_strings = [it for it in differences if it.section == ".rodata"]
    assert [it.member for it in in_strings] == ["vllm/_C.abi3.so"]
    assert cause in in_strings[0].cause
    assert bool(in_strings[0].cause) == bool(cause)


def test_a_member_that_only_one_has_is_named(tmp_path: Path, published: Path, built: dict[str, Path]) -> None:
    first = packed(tmp_path / "one", published, built)
    second = packed(
        tmp_path / "two",
        published,
        built,
        components=(*COMPONENTS[:2], Component(name="fa3", how="published", members=("vllm/fa3*",), reason="r")),
    )
    assert [(it.member, it.what) for it in compare(first, second)] == [("vllm/fa3.so", "only in the second")]


def test_a_mode_that_differs_is_named(tmp_path: Path, published: Path, built: dict[str, Path]) -> None:
    paths = []
    for mode in (0o644, 0o600):
        paths.append(tmp_path / f"{mode}.whl")
        with zipfile.ZipFile(paths[-1], "w") as archive:
            entry = zipfile.ZipInfo("a.py")
            entry.external_attr = mode << 16
            archive.writestr(entry, b"")
    assert [it.cause for it in compare(*paths)] == ["the umask"]


# -- a commit in place of a release ------------------------------------------------------------------------------

COMMIT = "0123456789abcdef" * 2 + "01234567"
OF_COMMIT = {
    "vllm/__init__.py": b"from the commit",
    "vllm/new/module.py": b"new",
    "vllm/fa3_glue.py": b"of an omitted component",
    "setup.py": b"",
    "requirements/cuda.txt": b"# CUDA\n-r common.txt\n\ntorch==2.11.0 # pinned\n",
    "requirements/common.txt": b'six>=1.16.0; python_version > "3.11" # why\n--extra-index-url nowhere\n',
}
METADATA = (
    b"Metadata-Version: 2.1\nName: vllm\nVersion: 0.23.0\nRequires-Dist: old\n"
    b'Requires-Dist: pandas; extra == "bench"\n\nVersion: in the text\n'
)


def test_a_commit_s_wheel_has_the_commit_s_files_version_and_requirements(
    tmp_path: Path, published: Path, built: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the release's list of files a new module would be missing; with its version nobody could tell the two apart."""
    monkeypatch.setitem(PUBLISHED, "vllm-0.23.0.dist-info/METADATA", METADATA)
    with zipfile.ZipFile(published, "w") as archive:
        for name, content in PUBLISHED.items():
            archive.writestr(name, content)
    path = packed(tmp_path / "out", published, built, source=OF_COMMIT, commit=COMMIT)
    name, version, _, _ = parse_wheel_filename(path.name)
    assert (name, str(version)) == ("vllm", "0.23.0+g012345678")
    with zipfile.ZipFile(path) as wheel:
        assert wheel.read("vllm/__init__.py") == b"from the commit"
        assert wheel.read("vllm/new/module.py") == b"new"
        assert not {"vllm/tool.sh", "vllm/fa3_glue.py", "setup.py"} & set(wheel.namelist())
        metadata = wheel.read("vllm-0.23.0+g012345678.dist-info/METADATA").decode()
        scope: dict[str, object] = {}
        exec(wheel.read("vllm/_version.py"), scope)  # noqa: S102 - vLLM imports it
    assert scope["__version__"] == "0.23.0+g012345678"
    assert scope["__version_tuple__"] == (0, 23, 0, "g012345678")
    head, _, text = metadata.partition("\n\n")
    assert text == "Version: in the text\n"
    assert [line for line in head.splitlines() if line.startswith(("Version", "Requires"))] == [
        "Version: 0.23.0+g012345678",
        'Requires-Dist: pandas; extra == "bench"',
        'Requires-Dist: six>=1.16.0; python_version > "3.11"',
        "Requires-Dist: torch==2.11.0",
    ]


def test_an_extension_that_a_commit_does_not_account_for_is_an_error(tmp_path: Path, published: Path, built: dict[str, Path]) -> None:
    """A Python file that is gone is the commit's own doing; machine code that nobody built would be the release's, against another source."""
    with pytest.raises(VerificationError, match="neither in the source nor in a component"):
        packed(tmp_path / "out", published, built, source=OF_COMMIT, commit=COMMIT, components=COMPONENTS[:1])


@pytest.mark.parametrize("text", [None, b"not a requirement at all", b"-r cuda.txt"], ids=["absent", "unreadable", "circular"])
def test_a_commit_whose_requirements_cannot_be_read_is_refused(
    tmp_path: Path, published: Path, built: dict[str, Path], text: bytes | None
) -> None:
    source = {path: content for path, content in OF_COMMIT.items() if path != "requirements/cuda.txt"}
    if text is not None:
        source["requirements/cuda.txt"] = text
    with pytest.raises(VerificationError, match="does not say what vLLM requires"):
        packed(tmp_path / "out", published, built, source=source, commit=COMMIT)
