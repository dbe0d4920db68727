"""The explanations: one section per id in a Markdown file per family. What is said of a check is said there, once.

A section:

    ## EB-DRV-003 nvml-driver-mismatch
    The driver and its library are of one version          <- the title: what holds on a healthy machine

    Why it matters, in a paragraph; it is also the `why` of a finding.

    More, as much as it takes.

    **Fix.** What to do.

        commands, indented

    **See** owner/repo#123; another source.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from envbuilder.doctor.commands import pastable, quoted
from envbuilder.values import value

_FOLDER = Path(__file__).with_name("pages")
_HEADING = r"(?m)^## (EB-[A-Z]+-\d{3}) (\S+)$"


@value
class Page:
    """The explanation of one id."""

    id: str
    name: str
    title: str
    why: str
    more: str
    fix: str
    written: tuple[str, ...]
    refs: tuple[str, ...]

    @functools.cached_property
    def commands(self) -> tuple[str, ...]:
        """The commands that are written there, as they can be pasted here."""
        return tuple(map(pastable, self.written))


@functools.cache
def family_pages(family: str) -> dict[str, Page]:
    """Return the pages of a family ("DRV"), by id."""
    path = _FOLDER / f"{family.lower()}.md"
    if not path.is_file():
        return {}
    parts = re.split(_HEADING, path.read_text(encoding="utf-8"))
    return {key: _page(key, name, body) for key, name, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)}


def page(id: str) -> Page:
    """Return the page of an id. Raises KeyError; a test holds that every registered id has one."""
    return family_pages(id.split("-")[1])[id]


def _page(id: str, name: str, body: str) -> Page:
    paragraphs = [part.strip("\n") for part in re.split(r"\n\s*\n", body.strip("\n"))]
    title, why = paragraphs[0].strip(), _flow(paragraphs[1]) if len(paragraphs) > 1 else ""
    more: list[str] = []
    commands: list[str] = []
    fix, refs = "", tuple[str, ...]()
    for paragraph in paragraphs[2:]:
        if paragraph.startswith("**Fix.**"):
            fix = _flow(paragraph.removeprefix("**Fix.**"))
        elif paragraph.startswith("    "):
            commands += [line.strip() for line in paragraph.splitlines()]
        elif paragraph.startswith("**See**"):
            refs = tuple(part.strip() for part in _flow(paragraph.removeprefix("**See**")).rstrip(".").split(";"))
        else:
            more.append(_flow(paragraph))
    return Page(id=id, name=name, title=title, why=why, more="\n\n".join(more), fix=fix, written=tuple(commands), refs=refs)


def _flow(text: str) -> str:
    return " ".join(text.split())


def commands_for(entry: Page, own: tuple[str, ...] | None, environment: str) -> tuple[str, ...]:
    """Return a finding's commands (`own`, or the page's), with the environment's path where a page says ENVIRONMENT."""
    if own is not None:
        return tuple(map(pastable, own))
    if not environment:  # a server may run here all the same, from wherever its `vllm` is
        return tuple(command.replace("ENVIRONMENT/bin/vllm", "vllm") for command in entry.commands)
    return tuple(command.replace("ENVIRONMENT", quoted(environment)) for command in entry.commands)
