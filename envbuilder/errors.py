"""Every way in which envbuilder gives up, with its exit code.

An error says three things: *what* failed, *why* as far as it is known, and what to do *next*. `reference` names
the kind in kebab-case, as pip's diagnostic errors do, so that a message can be searched for and a script can
match on it (it is also what `--json` carries).

Exit codes (a contract, see README): 0 fine; 1 findings, or a gate or a verification that failed; 2 wrong usage or
configuration; 3 envbuilder itself failed; 4 a step could not be carried out (a program, a download, the disk);
130 interrupted.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import ClassVar


class EnvbuilderError(Exception):
    """The base of all errors that are shown without a traceback."""

    reference: ClassVar[str] = "internal-error"
    exit_code: ClassVar[int] = 3

    def __init__(self, what: str, *, why: str = "", next: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.next = next

    def as_dict(self) -> dict[str, str]:
        return {"reference": self.reference, "what": self.what, "why": self.why, "next": self.next}


class UsageError(EnvbuilderError):
    """The command line asks for something that cannot be."""

    reference = "usage"
    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not among the known ones; answered with the nearest.

    `likely`: the name that was meant, "" for none, where spelling does not tell; `known` then keeps its order.
    """

    reference = "unknown-name"

    def __init__(self, kind: str, name: str, known: Iterable[str], *, why: str = "", likely: str | None = None) -> None:
        names = sorted(known) if likely is None else list(known)
        import difflib  # noqa: PLC0415 - for who mistyped a name only

        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5) if likely is None else [likely]
        hint = f"Did you mean {near[0]!r}? " if any(near) else ""
        super().__init__(f"unknown {kind} {name!r}", why=why, next=f"{hint}Known: {', '.join(names) or 'none'}.")


class ConfigurationError(EnvbuilderError):
    """A file that a person wrote (a target, a setting) says something that does not fit."""

    reference = "configuration"
    exit_code = 2


class LockError(EnvbuilderError):
    """A lock is missing, stale, or not what was written."""

    reference = "lock"
    exit_code = 1


class VerificationError(EnvbuilderError):
    """Bytes, a gate or a result are not what they must be."""

    reference = "verification"
    exit_code = 1


class HashMismatchError(VerificationError):
    """A file's sha256 is not the one in the lock."""

    reference = "hash-mismatch"


class GateError(VerificationError):
    """A gate named in the target did not hold."""

    reference = "gate"


class AbiError(VerificationError):
    """An extension module would not load with the torch beside it."""

    reference = "abi"


class SmokeError(VerificationError):
    """The canary did not sing: a wrong text, or none."""

    reference = "smoke"


class StepError(EnvbuilderError):
    """A step could not be carried out."""

    reference = "step"
    exit_code = 4


class FetchError(StepError):
    """A file could not be had from any configured source."""

    reference = "fetch"


class StorageError(StepError):
    """The disk is full, or a folder cannot be written."""

    reference = "storage"


class ProgramError(StepError):
    """A program ended with an error, was killed, or ran out of time."""

    reference = "program"
