"""Which targets there are: those that come with envbuilder, and the user's own.

A user's target is one TOML file in the configuration folder, or named by its path; its locks lie beside it, in
`lockfiles/<target>/<release>/`.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from envbuilder.errors import ConfigurationError, UnknownNameError
from envbuilder.targets.model import Target, read_target

_PACKAGE = Path(__file__).resolve().parent


def user_folder() -> Path:
    """Return the folder of the user's own targets."""
    return Path(os.environ.get("ENVBUILDER_CONFIG") or platformdirs.user_config_path("envbuilder")) / "targets"


def target_files() -> dict[str, Path]:
    """Return every target's file by name; a user's target of the same name comes before ours."""
    files = {path.stem: path for folder in (_PACKAGE, user_folder()) if folder.is_dir() for path in sorted(folder.glob("*.toml"))}
    return dict(sorted(files.items()))


def find_target(name: str) -> tuple[Target, Path]:
    """Return a target and its file, by name or by the path of a TOML file."""
    if name.endswith(".toml"):
        path = Path(name)
    else:
        files = target_files()
        if name not in files:
            raise UnknownNameError("target", name, files, why=f"There is no {name}.toml with envbuilder, nor in {user_folder()}.")
        path = files[name]
    target = read_target(path)
    if target.name != path.stem:
        raise ConfigurationError(
            f"{path} calls itself {target.name!r}", why="A target's file is named after it.", next=f"Rename it to {target.name}.toml."
        )
    return target, path


def lock_folder(target_file: Path, target: Target, release: str) -> Path:
    """Return where a release's locks lie: with envbuilder for its own targets, beside the file for others."""
    if target_file.resolve().parent != _PACKAGE:
        return target_file.resolve().parent / "lockfiles" / target.name / release
    installed = _PACKAGE.parent / "_lockfiles"  # in the wheel; in a checkout they are at the top
    root = installed if installed.is_dir() else _PACKAGE.parent.parent / "lockfiles"
    return root / target.name / release
