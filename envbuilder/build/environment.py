"""What a finished build says of its environments: the variables and arguments under which their programs run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from envbuilder.errors import UsageError
from envbuilder.process import inside

if TYPE_CHECKING:
    from envbuilder.layout import Layout
    from envbuilder.targets.model import EnvironmentName


def environment_variables(layout: Layout, name: EnvironmentName) -> dict[str, str]:
    """Return this process's variables, changed so that the environment's interpreter and programs come first.

    Raises UsageError when there is no such environment.
    """
    environment, chosen = layout.environment(name), chosen_variables(layout, name)
    if not layout.python(name).exists():
        raise UsageError(f"there is no environment in {environment}", next="Run `envbuilder build` again: it makes what is missing.")
    return inside(environment, chosen)


def chosen_variables(layout: Layout, name: EnvironmentName) -> dict[str, str]:
    """Return what the target sets for programs of an environment. Raises UsageError where there is no finished build."""
    return dict(_recorded(layout, name, "variables"))


def server_arguments(layout: Layout) -> tuple[str, ...]:
    """Return what the target tells vLLM's server. Raises UsageError where there is no finished build."""
    return tuple(_recorded(layout, "serve", "arguments"))


def _recorded(layout: Layout, name: EnvironmentName, what: str) -> Any:  # noqa: ANN401 - JSON
    try:
        return json.loads(layout.manifest.read_bytes())["environments"][name][what]
    except FileNotFoundError as error:
        why = f"{layout.manifest.name} is written when every stage has ended well, and removed before an environment is replaced."
        raise _unfinished(layout, why) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unfinished(layout, f"{layout.manifest.name}: {error}") from error


def _unfinished(layout: Layout, why: str) -> UsageError:
    return UsageError(f"{layout.out} holds no finished build", why=why, next="Run `envbuilder build` first, or name its folder with --out.")
