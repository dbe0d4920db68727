"""`envbuilder doctor` on this machine: its target, its verdict, and the redacted snapshot that becomes a fixture."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections import Counter
from pathlib import Path

from common import report
from tool import envbuilder

_FAULTS = {"fail", "warn", "crash"}


def main() -> None:
    this = report()
    snapshot = Path(this.request["out"]) / "h200-snapshot.json"
    document: dict = {}
    with this.check("doctor ends, and finds the target") as figures:
        code, document = envbuilder(this.request, "doctor", "--env", sys.prefix, "--save", str(snapshot), timeout_s=90)
        figures.update(
            exit_code=code, target=document["target"], host=document["host"], statuses=Counter(it["status"] for it in document["findings"])
        )
        wanted = "cuda" if this.gpu else "cpu"
        assert document["target"] == wanted, f"the target is {document['target']}, not {wanted}"
    with this.check("nothing is reported wrong (each entry: a true finding, or a false alarm to mend)") as figures:
        faults = [it for it in document.get("findings", []) if it["status"] in _FAULTS]
        figures["findings"] = [
            {key: it[key] for key in ("id", "name", "status", "severity", "evidence", "note", "explained_by")} for it in faults
        ]
        assert not faults, "; ".join(f"{it['id']} {it['name']} ({it['status']})" for it in faults)
    with this.check("every reader ended, in its time") as figures:
        readers = json.loads(snapshot.read_text(encoding="utf-8"))["readers"]
        figures.update({reader["name"]: reader["milliseconds"] for reader in readers})
        late = [f"{reader['name']}: {reader['status']} {reader['error']}" for reader in readers if reader["status"] != "ok"]
        assert not late, "; ".join(late)
    with this.check("the snapshot names no machine and no person") as figures:
        text = snapshot.read_text(encoding="utf-8")
        leaks = [word for word in (platform.node(), os.environ.get("HOSTNAME", "")) if len(word) > 3 and word in text]
        leaks += re.findall(r"GPU-[0-9a-f]{8}-[0-9a-f-]{20,}", text)
        figures["bytes"] = len(text)
        assert not leaks, f"in the snapshot: {leaks}"
    with this.check("the saved snapshot gives the same verdict") as figures:
        _, again = envbuilder(this.request, "doctor", "--facts", str(snapshot), timeout_s=60)
        before, after = ({it["id"]: it["status"] for it in one["findings"]} for one in (document, again))
        differing = {key: (before.get(key), after.get(key)) for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        figures["compared"] = len(before)
        assert not differing, f"{differing}"


main()
