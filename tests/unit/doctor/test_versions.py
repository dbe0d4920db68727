"""The doctor judges plain versions and markers itself: always as packaging would."""

from __future__ import annotations

import subprocess
import sys
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.markers import InvalidMarker, Marker, UndefinedEnvironmentName
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from envbuilder.doctor import versions
from envbuilder.doctor.versions import parse_requirement, within

VALUES = {
    "python_version": "3.11",
    "python_full_version": "3.11.7",
    "platform_machine": "x86_64",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "os_name": "posix",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "extra": "",
}
NUMBERS = st.lists(st.sampled_from(["0", "1", "2", "3", "10", "11", "011", "2024"]), min_size=1, max_size=4).map(".".join)
VERSIONS = st.builds(
    "{}{}".format, NUMBERS, st.sampled_from(["", "", "", "+cpu", "+cu130.1", "rc1", ".post1", ".dev3", "b2+g12", ".b1post2.dev3", "-", "x"])
)
CLAUSES = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["==", "!=", "<=", ">=", "<", ">", "~=", "===", "=", ""]),
    st.sampled_from(["", " "]),
    NUMBERS,
    st.sampled_from(["", "", "", ".*", ".dev0", "rc1", ".post1", "b1.post2", "+cpu", " "]),
)
SPECIFIERS = st.lists(CLAUSES, max_size=3).map(",".join)


@given(VERSIONS, SPECIFIERS)
@settings(max_examples=300, deadline=None)
def test_a_version_fits_where_packaging_says_so(version: str, specifier: str) -> None:
    try:
        found = Version(version)
        expected = SpecifierSet(specifier).contains(found, prereleases=True)
    except InvalidVersion:
        assert within(version, specifier) is False
    except InvalidSpecifier:
        with pytest.raises(InvalidSpecifier):
            within(version, specifier)
    else:
        assert within(version, specifier) is expected


@pytest.mark.parametrize("operator", ["==", "!=", "<=", ">=", "<", ">", "~="])
def test_numbers_are_compared_without_packaging(operator: str) -> None:
    """Otherwise the test above would compare packaging with itself."""
    plain = [versions._plainly_within(one, operator + other) for one, other in product(("2.9", "2.13.0+cpu"), ("2.9.0", "2.13", "3.0"))]
    assert set(plain) == {True, False}


@pytest.mark.parametrize(
    "specifier", ["===1.0", "==1.0.post1", ">1.*", "~=1", "~=1.0rc1", "==1!1.0", "==1.0+cpu", "@ https://x.example/y.whl"]
)
def test_what_is_not_plain_is_left_to_packaging(specifier: str) -> None:
    assert versions._plainly_within("1.0", specifier) is None


MARKER_PARTS = st.builds(
    "{} {} {}".format,
    st.sampled_from([*VALUES, "implementation_version", "nonsense"]),
    st.sampled_from(["==", "!=", "<", ">=", "in", "not in", "~="]),
    st.sampled_from(
        ["'3.10'", '"3.11"', "'3.11.7'", "'linux'", "'win32'", '"x86_64"', "'CPython'", "'v1'", "'3.11.*'", "''", "'pypy", "'a b'"]
    ),
)
MARKERS = st.recursive(
    MARKER_PARTS,
    lambda inner: st.builds("{} {} {}".format, inner, st.sampled_from(["and", "or"]), inner) | inner.map("({})".format),
    max_leaves=4,
)


@given(MARKERS)
@settings(max_examples=300, deadline=None)
def test_a_marker_holds_where_packaging_says_so(marker: str) -> None:
    try:
        expected = Marker(marker).evaluate(dict(VALUES))
    except (InvalidMarker, UndefinedEnvironmentName, ValueError):
        expected = False
    assert versions.holds(marker, VALUES) is expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("torch==2.11.0", ("torch", "==2.11.0", "")),
        ("Flash_Attn.Thing [x,y] (>=1.0) ; python_version < '3.13'", ("flash-attn-thing", ">=1.0", "python_version < '3.13'")),
        ("x @ https://host.example/x.whl", ("x", "@ https://host.example/x.whl", "")),
        ("", None),
        ("-r other.txt", None),
    ],
)
def test_a_requirement_is_split(line: str, expected: tuple[str, str, str] | None) -> None:
    assert parse_requirement(line) == expected


def test_a_plain_environment_is_judged_without_importing_packaging() -> None:
    """It brings logging, subprocess, platform and inspect: a fifth of the doctor's time."""
    code = """
from envbuilder.doctor import versions
versions.within("2.13.0+cpu", ">=2.11.0.dev0,<3,!=2.12.*")
versions.holds("python_version < '3.13' and sys_platform == 'linux'", {"python_version": "3.11", "sys_platform": "linux"})
print([name for name in ("packaging", "dataclasses", "logging") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"], check=False, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
