from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys

import pytest
from packaging import _manylinux

from envbuilder.locking.resolve import pythons_of
from envbuilder.locking.tags import _platforms, best_wheel

X86 = {"python": (3, 11), "machine": "x86_64", "glibc": "2.34"}

# pip's own finder, told to look for another machine: it sorts as `pip install` would there.
PIP = """
import json, sys, warnings
warnings.simplefilter("ignore")
from pip._internal.index.package_finder import CandidateEvaluator
from pip._internal.models.candidate import InstallationCandidate
from pip._internal.models.link import Link
from pip._internal.models.target_python import TargetPython
from pip._vendor.packaging.specifiers import SpecifierSet
from functools import cache
from pip._internal.models.wheel import Wheel
answers = []
@cache
def evaluation(version, platforms):
    python = TargetPython(platforms=list(platforms), py_version_info=version,
                          abis=[f"cp{version[0]}{version[1]}", "abi3", "none"], implementation="cp")
    tags = python.get_sorted_tags() if hasattr(python, "get_sorted_tags") else python.get_tags()
    return tags, CandidateEvaluator.create("pkg", target_python=python)
for case in json.load(sys.stdin):
    tags, evaluator = evaluation(tuple(case["python"]), tuple(case["platforms"]))
    candidates = [InstallationCandidate("pkg", "1.0", Link("https://host.invalid/" + name)) for name in case["names"]]
    fitting = [it for it in candidates if Wheel(it.link.filename).supported(tags)]
    best = evaluator.sort_best_candidate(fitting)
    # Of files that are equal to it, pip takes the one that an index names first.
    answers.append([it.link.filename for it in fitting if evaluator._sort_key(it) == evaluator._sort_key(best)] if best else [None])
json.dump(answers, sys.stdout)
"""


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["a-1-py3-none-any.whl", "a-1-cp311-cp311-manylinux_2_28_x86_64.whl"], 1),
        (["a-1-cp311-cp311-manylinux_2_17_x86_64.whl", "a-1-cp311-cp311-manylinux_2_28_x86_64.whl"], 1),
        (["a-1-cp311-cp311-manylinux_2_35_x86_64.whl", "a-1-cp311-cp311-manylinux_2_28_x86_64.whl"], 1),
        (["a-1-cp311-cp311-manylinux_2_28_aarch64.whl"], None),
        (["a-1-cp312-cp312-manylinux_2_28_x86_64.whl", "a-1-cp39-abi3-manylinux2014_x86_64.whl"], 1),
        (["a-1-cp312-abi3-manylinux2014_x86_64.whl"], None),
        (["a-1-1-py3-none-any.whl", "a-1-py3-none-any.whl", "a-1-2-py3-none-any.whl"], 2),
        (["a-1-10-py3-none-any.whl", "a-1-9-py3-none-any.whl"], 0),
        (["a-1-cp311-cp311-musllinux_1_2_x86_64.whl", "a-1-cp311-cp311-win_amd64.whl"], None),
        (["a-1-cp311-cp311-linux_x86_64.whl"], 0),
        (["a-1-cp313-cp313t-manylinux_2_28_x86_64.whl"], None),
        (["not a wheel.whl", "a-1.tar.gz"], None),
        ([], None),
    ],
)
def test_the_file_is_chosen_by_its_tags(names: list[str], chosen: int | None) -> None:
    assert best_wheel(names, **X86) == (None if chosen is None else names[chosen])  # type: ignore[arg-type]


def test_the_choice_does_not_depend_on_the_order() -> None:
    """A lock that changed with the order of an index's answer would not be reproducible."""
    names = ["a-1-py3-none-any.whl", "a-1-py2.py3-none-any.whl", "a-1-cp311-none-any.whl", "a-1-cp39-abi3-manylinux1_x86_64.whl"]
    assert len({best_wheel(order, **X86) for order in itertools.permutations(names)}) == 1  # type: ignore[arg-type]


def test_the_choice_is_pips_own_for_realistic_sets() -> None:
    """A lock names one file per Python; pip with the same lock must take the same one, or two users get two builds."""
    chance = random.Random(20261123)
    pythons = [
        "cp311-cp311",
        "cp312-cp312",
        "cp313-cp313",
        "cp39-abi3",
        "cp311-abi3",
        "cp38-abi3",
        "py3-none",
        "py2.py3-none",
        "cp311-none",
    ]
    platforms = [
        "any",
        "manylinux1_{m}",
        "manylinux2010_{m}",
        "manylinux2014_{m}.manylinux_2_17_{m}",
        "manylinux_2_17_{m}",
        "manylinux_2_28_{m}",
        "manylinux_2_31_{m}",
        "manylinux_2_34_{m}",
        "manylinux_2_39_{m}",
        "linux_{m}",
        "musllinux_1_2_{m}",
    ]
    cases = []
    for _ in range(400):
        machine, python, glibc = (
            chance.choice(["x86_64", "aarch64"]),
            (3, chance.choice([11, 12, 13])),
            chance.choice(["2.17", "2.28", "2.34", "2.39"]),
        )
        names = {
            f"pkg-1.0{chance.choice(['', '', '', '-1', '-2', '-10'])}-{chance.choice(pythons)}-{chance.choice(platforms).format(m=machine)}.whl"
            for _ in range(chance.randint(1, 6))
        }
        order = list(_platforms(machine, int(glibc[2:])))
        cases.append({"names": sorted(names), "python": python, "platforms": order, "machine": machine, "glibc": glibc})
    child = subprocess.run([sys.executable, "-c", PIP], input=json.dumps(cases), capture_output=True, text=True, check=False)
    if "No module named 'pip'" in child.stderr:
        pytest.skip("the tests' environment has no pip to compare with")
    assert child.returncode == 0, child.stderr
    for case, pips in zip(cases, json.loads(child.stdout), strict=True):
        ours = best_wheel(case["names"], python=case["python"], machine=case["machine"], glibc=case["glibc"])  # type: ignore[arg-type]
        assert ours in pips, case


def test_our_platforms_are_those_that_packaging_sees_on_such_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_manylinux, "_get_glibc_version", lambda: (2, 34))
    monkeypatch.setattr(_manylinux, "_is_compatible", lambda *_: True)
    monkeypatch.setattr(_manylinux, "_have_compatible_abi", lambda *_: True)
    theirs = list(_manylinux.platform_tags(["x86_64"]))
    assert list(_platforms("x86_64", 34)) == [*theirs, "linux_x86_64"]


@pytest.mark.parametrize(
    ("specifier", "minors"),
    [(">=3.11,<3.14", [11, 12, 13]), ("==3.12.*", [12]), (">=3.11", [11, 12, 13, 14, 15]), ("<3.11", []), (">=3.12.4,<3.14", [12, 13])],
)
def test_the_pythons_of_a_range(specifier: str, minors: list[int]) -> None:
    assert pythons_of(specifier) == [(3, minor) for minor in minors]
