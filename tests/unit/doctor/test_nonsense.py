"""Snapshots are files that anyone may have written: whatever stands in them is judged and shown, or refused with a reason."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshots import HEALTHY, SPARK, change

from envbuilder.cli import main
from envbuilder.doctor.document import document
from envbuilder.doctor.examine import examine
from envbuilder.doctor.model import Status
from envbuilder.doctor.render import Style, examination
from envbuilder.facts import redact
from envbuilder.facts.codec import from_json, to_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envbuilder.facts.model import Snapshot

PLAIN = {name: json.loads(json.dumps(to_json(snapshot))) for name, snapshot in HEALTHY.items()}
TEXT = st.sampled_from(
    [
        "",
        "\0",
        "\033[2J",
        "x" * 9000,
        "13",
        "13.",
        ".",
        "-1",
        "1e999",
        "\u0663.\u0660",
        "13.0.0+cu130",
        "a\nb",
        "/",
        "~",
        "$(reboot)",
        "\ud800",
    ]
)
NUMBER = st.sampled_from([0, -1, 1, 2**31, 2**64, -(10**30)])
REAL = st.sampled_from([0.0, -1.5, 1e308, float("inf"), float("nan")])


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values in a document that are no containers, and of the lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        if not isinstance(part, dict):
            yield (*path, key)
        yield from leaves(part, (*path, key))


LEAVES = {name: [path for path in leaves(plain) if path[0] != "schema"] for name, plain in PLAIN.items()}


def judged(snapshot: Snapshot) -> None:
    result = examine(snapshot)
    crashed = [(one.check.id, one.verdict.evidence) for one in result.findings if one.status is Status.CRASH]
    assert crashed == []
    for style in (Style(), Style(plain=True)):
        page = examination(result, style, everything=True)
        assert not [sign for sign in page if sign != "\n" and not sign.isprintable()], "a terminal obeys control characters"
    json.dumps(document(result))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(PLAIN)))
def test_nonsense_of_the_right_type_is_judged_without_a_crash(data: st.DataObject, name: str) -> None:
    value = copy.deepcopy(PLAIN[name])
    for path in data.draw(st.lists(st.sampled_from(LEAVES[name]), min_size=1, max_size=4, unique=True)):
        place = value
        try:
            for key in path[:-1]:
                place = place[key]
            old = place[path[-1]]
        except (KeyError, IndexError, TypeError):
            continue  # an outer list was emptied before
        match old:
            case bool():
                place[path[-1]] = not old
            case int():
                place[path[-1]] = data.draw(NUMBER)
            case float():
                place[path[-1]] = data.draw(REAL)
            case str():
                place[path[-1]] = data.draw(TEXT)
            case list():
                place[path[-1]] = []
            case _:
                pass
    judged(from_json(value))


ANYTHING = st.one_of(TEXT, NUMBER, REAL, st.none(), st.booleans(), st.just([]), st.just({}), st.just([[]]), st.just({"": None}))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(PLAIN)))
def test_a_file_with_anything_in_it_has_a_result_or_a_reason(
    data: st.DataObject, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Asked as a person asks: exit code 0, 1 or 2, and never a traceback, whatever was put, dropped, cut or garbled."""
    value = copy.deepcopy(PLAIN[name])
    for path in data.draw(st.lists(st.sampled_from(LEAVES[name]), max_size=3, unique=True)):
        place = value
        try:
            for key in path[:-1]:
                place = place[key]
            if data.draw(st.booleans()):
                place[path[-1]] = copy.deepcopy(data.draw(ANYTHING))  # drawn lists are shared, and are written into
            else:
                del place[path[-1]]
        except (KeyError, IndexError, TypeError):
            continue  # what held it went before
    raw = bytearray(json.dumps(value).encode())
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.mktemp("nonsense") / "a.json"
    file.write_bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) - 1, len(raw) // 2, 0]))])
    out, err = io.StringIO(), io.StringIO()
    options = data.draw(st.lists(st.sampled_from(["--json", "--all"]), unique=True))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["doctor", "--facts", str(file), *options])
    assert code in {0, 1, 2}, err.getvalue()
    assert "Traceback" not in err.getvalue()
    assert (code == 2) == err.getvalue().startswith("error[configuration]")
    if "--json" in options:
        json.loads(out.getvalue())


@pytest.mark.parametrize("section", [name for name, part in PLAIN["a Spark"].items() if isinstance(part, dict | list)])
def test_a_section_that_is_missing_is_judged_without_a_crash(section: str) -> None:
    value = copy.deepcopy(PLAIN["a Spark"])
    if value.get(section):
        value[section] = [] if isinstance(value[section], list) else None
    judged(from_json(value))


def test_control_characters_do_not_reach_the_terminal() -> None:
    """A package's name, a path, a line of a log: an escape sequence in it could hide or forge what stands on the page."""
    evil = "evil\033]0;owned\007\033[2Jname\u202e\x9b31m"
    assert redact.text(evil).isprintable()
    assert redact.text("a\tb\nc") == "a\tb\nc"
    judged(change(SPARK, environment__leftovers=(f"~{evil}",), environment__moved_from=f"/srv/{evil}"))


def containers(value: Any) -> Iterator[Any]:
    """Yield every object and list of a document that has something in it."""
    if value and isinstance(value, dict | list):
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from containers(part)


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


ODD = st.sampled_from(
    [
        *(None, True, 0, -1, 2**63, 10**99, 10**400, 1.5, float("nan"), float("-inf")),
        *("", "x" * 5000, "\ud800", "\0", "13.0"),
        # No deeper: `damage` may move it into itself and copy that, where Python allows some 2,000 calls.
        *([], [None], {}, {"": 1}, {"\033[2J": {}}, nested(50), nested(400)),
    ]
)
NEW_KEYS = st.sampled_from(["", "zz", "schema", "target", "\ud800", "\033[2J", "k" * 5000])


def damage(value: dict[str, Any], data: st.DataObject) -> None:
    """Change a document's shape in one place."""
    place = data.draw(st.sampled_from(list(containers(value)) or [value]))
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    how = data.draw(st.sampled_from(["drop", "replace", "add", "repeat", "move"])) if keys else "add"
    key = data.draw(st.sampled_from(keys)) if keys else ""
    if how == "drop":
        del place[key]
    elif how == "replace":
        place[key] = copy.deepcopy(data.draw(ODD))  # hypothesis hands the same list out again
    elif how == "add" and isinstance(place, dict):
        place[data.draw(NEW_KEYS)] = copy.deepcopy(data.draw(ODD))
    elif how == "add":
        place.append(copy.deepcopy(data.draw(ODD)))
    elif how == "repeat":
        place[key] = [place[key]] * data.draw(st.sampled_from([1, 50]))
    else:
        place[key] = copy.deepcopy(data.draw(st.sampled_from(list(containers(value)))))


def replay(path: Path, text: str, *options: str) -> tuple[int, str, str]:
    """Give a file to the command; return its exit code and what it printed."""
    path.write_text(text, errors="surrogatepass")
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(["doctor", "--facts", str(path), *options])
    return code, out.getvalue(), err.getvalue()


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(PLAIN)))
def test_a_file_of_another_shape_is_judged_or_refused_and_never_a_traceback(
    data: st.DataObject, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Exit code 3 says that envbuilder is at fault: for a file that somebody changed, cut or invented, it is not."""
    value = copy.deepcopy(PLAIN[name])
    for _ in range(data.draw(st.integers(1, 3))):
        damage(value, data)
    text = json.dumps(value)
    text = text[: data.draw(st.one_of(st.just(len(text)), st.integers(0, len(text))))]
    code, out, err = replay(tmp_path_factory.getbasetemp() / "damaged.json", text, "--json")
    document = json.loads(out)
    assert code in {0, 1, 2}, err
    if code == 2:
        assert err.startswith("error[configuration]: ")
        assert document["error"]["what"]
        assert document["error"]["why"]
        assert len(err) < 1000, "it names the place, and does not print the file"
        assert not [sign for sign in err if sign != "\n" and not sign.isprintable()], "a terminal obeys control characters"
    else:
        assert [one for one in document["findings"] if one["status"] == "crash"] == []


@pytest.mark.parametrize(
    ("path", "spelled", "why"),
    [
        (("memory", "pressure_full_avg10"), "1" + "0" * 400, "memory.pressure_full_avg10: expected a number of at most 100 digits"),
        (("memory", "min_free_kb"), "-1" + "0" * 4000, "memory.min_free_kb: expected a number of at most 100 digits"),
        (("memory", "min_free_kb"), "1" + "0" * 5000, "It is not JSON"),
        (("memory", "min_free_kb"), "1e999", "memory.min_free_kb: expected an integer, got inf"),
        (("host",), "[" * 900 + "]" * 900, "host: expected an object"),
        (("host",), "[" * 100_000 + "]" * 100_000, "It is not JSON"),
        (("schema",), json.dumps("x" * 100_000), "Its schema is 'xxx"),
        (("schema",), "null", "Its schema is None"),
        (("schema",), '"envbuilder/facts/2"', "Its schema is 'envbuilder/facts/2'; this envbuilder reads 'envbuilder/facts/1'"),
        (("host",), json.dumps({"k" * 100_000: 1}), "host: unknown field 'kkk"),
        (("packages",), json.dumps({"\033[2J" + "k" * 100_000: 1}), "packages['\\x1b[2Jkkk"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_what_is_refused_is_refused_in_a_few_words(path: tuple[str, ...], spelled: str, why: str, tmp_path: Path) -> None:
    """A number that no float holds ended in a traceback; a key of a megabyte was printed whole, with what a terminal obeys in it."""
    value = copy.deepcopy(PLAIN["a Spark"])
    place = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = "@here@"
    code, _, err = replay(tmp_path / "facts.json", json.dumps(value).replace('"@here@"', spelled))
    assert code == 2
    assert why in err
    assert len(err) < 600 + len(str(tmp_path))
    assert not [sign for sign in err if sign != "\n" and not sign.isprintable()]
