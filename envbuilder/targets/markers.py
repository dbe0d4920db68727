"""What environment markers (PEP 508) are answered with: a target's machine and a Python's version, never the machine that asks."""

from __future__ import annotations


def marker_environment(python: str, machine: str) -> dict[str, str]:
    """Return the answers for a Python, given by its full version ("3.11.2").

    All that there are: what is left out, `packaging` would take from this machine. Which kernel runs is nothing that a
    build may depend on.
    """
    return {
        "implementation_name": "cpython",
        "implementation_version": python,
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": python,
        "python_version": ".".join(python.split(".")[:2]),
        "sys_platform": "linux",
    }
