"""Check a build, an OCI layout or an image in a registry against its lock; name the first file that differs.

    envbuilder verify .envbuilder/cpu
    envbuilder verify registry.example:5000/team/vllm:stable-serve

Nothing in an image is believed: the lock inside it is proved whole, what it names is fetched by hash, and every layer's
files are made anew and compared. For a build's folder the environments and the provenance are checked as well; with
--key also the provenance's signature. Ends with 1 when anything differs, and when files could not be compared and no
signature that you asked for vouches for them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from envbuilder.build.verification import Verified
    from envbuilder.console import Console


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="DIR|IMAGE", help="a build's folder, an OCI layout (DIR or DIR:IMAGE), or host[:port]/path:tag")
    parser.add_argument("--key", metavar="FILE", help="require that this Ed25519 public key (PEM) signed the provenance")
    parser.add_argument("--offline", action="store_true", help="use only files of this machine")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace, console: Console) -> int:
    from pathlib import Path

    from envbuilder.build.verification import Verifier
    from envbuilder.store.cache import Store, default_root
    from envbuilder.store.settings import read_settings

    verifier = Verifier(store=Store(default_root()), settings=read_settings(), console=console, offline=args.offline)
    verified = verifier.verify(args.what, key=Path(args.key) if args.key else None)
    document = _document(args.what, verified)
    if args.json:
        print(json.dumps(document))  # noqa: T201
    else:
        _summary(document, console)
    return 0 if document["ok"] else 1


def _document(what: str, verified: list[Verified]) -> dict[str, Any]:
    subjects = [
        {"name": it.name, "digest": it.digest, "lock": it.lock, "checks": [check.as_dict() for check in it.checks]} for it in verified
    ]
    found = {(check.name, check.status) for it in verified for check in it.checks}
    # Files that were not compared are taken on somebody's word: on that of whoever's signature was asked for, and on no one else's.
    proved = ("files", "not-run") not in found or ("signature", "pass") in found
    ok = proved and "fail" not in {status for _, status in found}
    return {"schema": "envbuilder/verify/1", "what": what, "ok": ok, "subjects": subjects}


def _summary(document: dict[str, Any], console: Console) -> None:
    rows = [(it["name"], check["name"], check["status"], check["detail"]) for it in document["subjects"] for check in it["checks"]]
    console.table(document["what"], ("of", "check", "", "found"), rows)
    checks = [check for it in document["subjects"] for check in it["checks"]]
    not_run = sorted({check["name"] for check in checks if check["status"] == "not-run"})
    if not_run:
        console.line(f"Not run, and so not proved: {', '.join(not_run)}.")
    if any(check["status"] == "fail" for check in checks):
        console.line("it is not what its lock says")
    elif not document["ok"]:
        console.line("its files were not compared with its lock; `--key` accepts them on the word of whoever signed its provenance")
    elif not not_run:
        console.line("all of it is what its lock says")
