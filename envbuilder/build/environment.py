"""The variables under which a built environment's programs run."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from envbuilder.errors import UsageError
from envbuilder.process import clean_environment

if TYPE_CHECKING:
    from envbuilder.layout import Layout


def environment_variables(layout: Layout, name: str) -> dict[str, str]:
    """Return this process's variables, changed so that the environment's interpreter and programs come first.

    What the target sets is set only where the user has not: their word counts. Raises UsageError when there is no
    such environment.
    """
    environment = layout.environment(name)
    try:
        manifest = json.loads(layout.manifest.read_bytes())
        chosen = manifest["environments"][name]["variables"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{layout.out} holds no finished build",
            why=f"{layout.manifest.name}: {error}",
            next="Run `envbuilder build` first, or name its folder with --out.",
        ) from error
    if not layout.python(name).exists():
        raise UsageError(f"there is no environment in {environment}", next="Run `envbuilder build` again: it makes what is missing.")
    path = f"{environment / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**chosen, **clean_environment(), "VIRTUAL_ENV": str(environment), "PATH": path}
