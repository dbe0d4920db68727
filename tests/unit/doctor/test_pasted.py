"""Every command that a person is told to type: it is one for a shell, its programs are there, and it destroys nothing."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cases import PASSES, SPEAKS, examined
from simulated import MACHINES
from snapshots import HEALTHY, SPARK, change, with_dists

from envbuilder.cli import COMMANDS
from envbuilder.doctor.commands import pastable, quoted
from envbuilder.doctor.examine import examine
from envbuilder.doctor.model import Status
from envbuilder.doctor.pages import commands_for, page
from envbuilder.doctor.registry import all_checks
from envbuilder.facts import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envbuilder.facts.model import Snapshot

ROOT = Path(__file__).parents[3]
ODD = "/home/alice/my envs/it's"  # a path that only survives when it is quoted
# A shell's own, and what Ubuntu and DGX OS have; what needs a package of its own is installed by the line before.
SYSTEM = frozenset(
    re.findall(
        r"\S+",
        """cat cd curl df dpkg du echo export grep head ip journalctl last ldd ls lspci mv ps python3 sh sort ss sudo sync tail tee unset
        apt apt-mark dmesg dkms fwupdmgr modprobe mokutil nvidia-modprobe poweroff reboot snap swapoff swapon sysctl systemctl
        timedatectl ubuntu-drivers update-alternatives update-initramfs usermod ln chown kill git docker nvidia-smi nvidia-ctk
        nvidia-uninstall uname modinfo""",
    )
)
# There wherever their finding is: it is about them, or an earlier line brings them.
WITH_ITS_FINDING = {"conda": "EB-ENV-020", "helm": "EB-CTR-018", "kubectl": "EB-CTR-018", "smartctl": "EB-MACH-016"}
ONLY_ITS_OWNER_KNOWS = {"MODEL", "IMAGE"}
FAULTS = {Status.FAIL, Status.WARN, Status.INFO}


def at(s: Snapshot, path: str) -> Snapshot:
    """Move the snapshot's environment there."""
    return change(s, environment__path=path) if s.environment else s


def told(s: Snapshot) -> Iterator[tuple[str, str]]:
    """Yield (id, command) of every finding that speaks, as it is printed."""
    result = examined(s)
    for finding in result.findings:
        if finding.status in FAULTS:
            for command in commands_for(page(finding.check.id), finding.verdict.commands, result.environment):
                yield finding.check.id, redact.text(command)


@pytest.fixture
def findings(snapshot_of: Callable[[str], Snapshot], monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    monkeypatch.setenv("HOME", "/home/alice")
    snapshots = [*HEALTHY.values(), *PASSES.values(), *(s for _, s in SPEAKS.values()), *map(snapshot_of, MACHINES)]
    moved = [at(s, ODD) for s in snapshots]
    return list(dict.fromkeys(pair for s in (*snapshots, *moved) for pair in told(s)))


PAGES = [(check.id, command) for check in all_checks().values() for command in page(check.id).commands]


def simple(command: str) -> list[list[str]]:
    """Return the words of each simple command in a line, without what it sets for itself and without sudo. Raises ValueError."""
    lexer = shlex.shlex(command.replace("$(", "(").replace("\\(", ""), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("();<>|&"):
            parts.append([])
        else:
            parts[-1].append(word)
    found = []
    for part in parts:
        while part and (re.match(r"[A-Z_]+=", part[0]) or part[0] == "sudo"):
            part.pop(0)
        if part:
            found.append(part)
    return found


def faults_of(id: str, command: str, *, on_page: bool) -> Iterator[str]:
    """Name what is wrong with a command."""
    try:
        parts = simple(command)
    except ValueError as error:
        yield f"is no shell command: {error}"
        return
    if "$(" not in command and "'" not in command and re.search(r"[<>]", command):
        yield "redirects, or has a placeholder in angle brackets"
    if "~'" in command or "'~" in command or '"~' in command:
        yield "a ~ in quotes stays a ~"
    for words in parts:
        yield from _program_faults(id, words, on_page=on_page)
        yield from _destruction(words)
    placeholders = {"ENVIRONMENT", "NAME", "OTHER"} if not on_page else set()
    yield from (f"{word} stands for what is known here" for word in placeholders if re.search(rf"\b{word}\b", command))


def _program_faults(id: str, words: list[str], *, on_page: bool) -> Iterator[str]:
    program = words[0]
    name = program.rpartition("/")[2]
    if name == "uv" and words[1:3] in (["pip", "install"], ["pip", "uninstall"], ["pip", "check"]) and "--python" not in words:
        yield "does not say into which environment"
    if name == "uv" and words[1:3] == ["pip", "install"] and "torch" in words:
        yield "takes any torch"
    if name == "envbuilder":
        yield from _own_faults(words[1:])
    inside = program.startswith("ENVIRONMENT/bin/") if on_page else "/bin/" in program
    ours = name in {"envbuilder", "uv", "vllm", "hf", "pip"}
    known = SYSTEM | {name for name, where in WITH_ITS_FINDING.items() if where == id}
    if (
        not (ours and (inside or name in {"envbuilder", "uv", "vllm"}))
        and program not in known
        and not re.fullmatch(r"[\d ]*|.*\)", program)
    ):
        yield f"{program} is not on every Spark"


def _own_faults(arguments: list[str]) -> Iterator[str]:
    """Parse a command of ours as our command line does."""
    if not arguments or arguments[0] not in COMMANDS:
        yield "is no command of envbuilder's"
        return
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(f"envbuilder.commands.{arguments[0].replace('-', '_')}").configure(parser)
    try:
        parser.parse_args(arguments[1:])
    except (argparse.ArgumentError, SystemExit) as error:
        yield f"envbuilder does not take it: {error}"


def _destruction(words: list[str]) -> Iterator[str]:
    if "--clear" in words or words[0] == "dd" or words[0].startswith("mkfs"):
        yield "clears in place"
    if words[0] == "rm":
        yield "removes what could be set aside"
    if words[0] == "mv" and words[1] != "-T":
        yield "moves into a folder of that name, if there is one"


@pytest.mark.parametrize(("id", "command"), PAGES)
def test_a_page_says_what_a_shell_takes(id: str, command: str) -> None:
    """A page is read by someone whose machine does not work: what it says is typed as it stands."""
    assert list(faults_of(id, command, on_page=True)) == [], command


def test_what_findings_say_can_be_pasted(findings: list[tuple[str, str]]) -> None:
    """Over all machines, and with the environment at a path that has spaces and quotes in it."""
    assert len(findings) > 200
    wrong = [(name, command, fault) for name, command in findings for fault in faults_of(name, command, on_page=False)]
    assert wrong == []


def test_the_judge_of_commands_is_not_blind() -> None:
    """Each of these was once on a page."""
    bad = {
        "uv pip install --reinstall torch": 2,
        "uv pip uninstall flash-attn": 1,
        "python3 -m venv --clear /usr/local": 1,
        "mv ~/.cache/flashinfer ~/.cache/flashinfer.old": 1,
        "uv pip install --python '~/my env/bin/python' numpy": 1,
        "envbuilder align": 1,
        "envbuilder mend": 1,
        "nvcc --list": 1,
        "uv pip install --python /x/bin/python NAME": 1,
        "uv pip install --python /x/bin/python <name>": 2,
        "echo 'unfinished": 1,
    }
    assert {command: len(list(faults_of("EB-ENV-002", command, on_page=False))) for command in bad} == bad


def test_a_clones_launcher_and_its_uv_are_called_by_names_that_lead_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a clone neither `envbuilder` nor `uv` is on PATH: what is printed would end with "command not found"."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "my tools").mkdir()
    (tmp_path / "my tools/uv").touch()
    monkeypatch.setattr("sys.executable", str(tmp_path / "my tools/python"))
    monkeypatch.setenv("ENVBUILDER_COMMAND", "bin/envbuilder")
    assert pastable("envbuilder align --env .venv") == "bin/envbuilder align --env .venv"
    assert pastable("A=1 envbuilder build && uv venv x") == f"A=1 bin/envbuilder build && {quoted(str(tmp_path))}/'my tools'/uv venv x"
    assert pastable("export X=/srv/envbuilder/uv pip") == "export X=/srv/envbuilder/uv pip", "a path is no program"


def test_who_has_them_on_path_reads_their_names_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("uv", "envbuilder"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ENVBUILDER_COMMAND", str(tmp_path / "envbuilder"))
    assert pastable("envbuilder build && uv venv x") == "envbuilder build && uv venv x"


@pytest.mark.parametrize(("user", "programs", "expected"), [(0, (), "apt update && apt install gcc"), (0, ("sudo",), ""), (1000, (), "")])
def test_root_of_a_container_is_not_told_to_use_a_sudo_that_is_not_there(
    user: int, programs: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images have no sudo, and their user is root: every line that begins with it would end with "command not found"."""
    command = "sudo apt update && sudo apt install gcc"
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in programs:
        (tmp_path / name).touch(mode=0o755)
    assert pastable(command) == (expected or command)


def test_the_launcher_hands_its_name_on() -> None:
    """Only the shell script knows how it was called: the interpreter that it starts is given -c."""
    text = (ROOT / "bin/envbuilder").read_text()
    assert text.index('export ENVBUILDER_COMMAND="$0"') < text.index('exec "$root/.venv/bin/python"')


def test_a_home_folder_in_a_quoted_path_is_still_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page shows ~ for it, and a shell expands no ~ within quotes."""
    monkeypatch.setenv("HOME", "/home/alice")
    assert redact.text(quoted("/home/alice/my env/bin/python")) == "~/'my env'/bin/python"


@pytest.mark.parametrize("path", ["/usr/local", "/usr"])
def test_a_prefix_of_the_system_is_never_set_aside(path: str) -> None:
    """`--env /usr/local` in a container: its Python may be in /usr/bin, and clearing it would end the container."""
    prefix = change(
        SPARK,
        environment__path=path,
        environment__kind="prefix",
        environment__interpreter__path=f"{path}/bin/python",
        environment__interpreter__exists=False,
        environment__interpreter__home="",
        environment__interpreter__headers=False,
        environment__lock=None,
    )
    faults = {finding.check.id for finding in examine(prefix).findings if finding.is_fault}
    assert not faults & {"EB-ENV-002", "EB-ENV-003", "EB-TRI-003"}
    old = change(prefix, environment__interpreter__version="3.15.0")
    assert not [command for _, command in told(old) if re.search(rf"\bmv\b|\bvenv\b.*{path}", command)]


def test_packages_of_a_target_folder_are_installed_into_it() -> None:
    folder = change(SPARK, environment__kind="prefix", environment__path="/srv/x", environment__site_packages=("/srv/x",))
    sick = with_dists(folder, *(change(entry, version="2.4.1") for entry in folder.environment.distributions if entry.name == "numpy"))
    commands = [command for name, command in told(sick) if name == "EB-PKG-011"]
    assert commands == [pastable("uv pip install --target /srv/x 'numpy<2.4,>=1.24'")]


def test_packages_of_a_systems_python_are_installed_past_its_guard() -> None:
    found = change(SPARK, environment__kind="prefix", environment__path="/usr/local", environment__interpreter__path="/usr/bin/python3.12")
    sick = with_dists(found, *(change(entry, version="2.4.1") for entry in found.environment.distributions if entry.name == "numpy"))
    commands = [command for name, command in told(sick) if name == "EB-PKG-011"]
    assert commands == [pastable("uv pip install --python /usr/bin/python3.12 --break-system-packages 'numpy<2.4,>=1.24'")]
