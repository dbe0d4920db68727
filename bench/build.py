"""Making an environment against uv by hand, the build that does nothing, and the symbol check against importing vLLM.

    just bench-build [OUT]

OUT is a finished build of target cpu (default: .envbuilder/cpu). Everything comes from warm caches.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from timing import Contender, compare, machine, measure

from envbuilder.layout import Layout
from envbuilder.locking.model import read_lock
from envbuilder.store.cache import Store, default_root
from envbuilder.targets.catalogue import find_target, lock_folder
from envbuilder.uv import uv_program

ROOT = Path(__file__).resolve().parents[1]
ASSEMBLIES = 16
LAUNCHER = str(ROOT / "bin" / "envbuilder")


def main() -> None:
    layout = Layout.of(sys.argv[1] if len(sys.argv) > 1 else ".envbuilder/cpu")
    print(machine())
    with tempfile.TemporaryDirectory(prefix="envbuilder-bench-", dir=layout.out.parent) as folder:
        _environments(Path(folder))
    _no_op(layout)
    _symbols(layout)


def _environments(folder: Path) -> None:
    """Both make the serve and the quantize environment; uv's lines are what a person would type."""
    target, path = find_target("cpu")
    lock = read_lock(lock_folder(path, target, target.default_release))
    store = Store(default_root())
    by_hand, out = folder / "by-hand", folder / "out"
    script = ["set -e"]
    for name in ("serve", "quantize"):
        wheels = lock.wheels(name, ".".join(map(str, sys.version_info[:3])), "x86_64")
        requirements = folder / f"{name}.txt"
        requirements.write_text("".join(f"{it.name}=={it.version} --hash=sha256:{it.file.sha256}\n" for it in wheels), encoding="utf-8")
        links = store.link_folder((it.file.sha256, it.file.filename) for it in wheels)
        script.append(f"'{uv_program()}' venv --no-config --python '{sys.executable}' '{by_hand / name}'")
        script.append(
            f"'{uv_program()}' pip sync --no-config --cache-dir '{store.uv_cache}' --python '{by_hand / name}/bin/python' "
            f"--require-hashes --no-index --offline --find-links '{links}' '{requirements}'"
        )
    whole = Contender(
        name="envbuilder build --no-smoke, empty folder",
        command=[LAUNCHER, "build", "--target", "cpu", "--no-smoke", "--no-image", "--out", str(out)],
        before=lambda: _gone(out),
    )
    hand = Contender(
        name="uv venv + uv pip sync, twice, by hand",
        command=["sh", "-c", "\n".join(script)],
        before=lambda: _gone(by_hand),
    )
    assembly = []
    for number in range(ASSEMBLIES + 1):  # who comes first finds another disk than who comes second
        seconds = {}
        for contender in (hand, whole) if number % 2 else (whole, hand):
            seconds[contender.name] = measure(contender).seconds
        stages = [json.loads((out / ".stages" / f"assemble-{name}.json").read_bytes())["seconds"] for name in ("serve", "quantize")]
        assembly.append((sum(stages), seconds[hand.name]))
    print(f"\nmaking both environments from a warm cache  ({ASSEMBLIES} runs each, in turn; median)")
    ratios = [ours / theirs for ours, theirs in assembly[1:]]
    print(f"  envbuilder's assemble stages                 {statistics.median(it[0] for it in assembly[1:]):8.3f} s")
    print(f"  {hand.name:<44} {statistics.median(it[1] for it in assembly[1:]):8.3f} s")
    print(f"  ours / by hand: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def _gone(folder: Path) -> None:
    """Remove a folder, and let the disk end what it owes for that: else it is paid by who runs next."""
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()


def _no_op(layout: Layout) -> None:
    ours = Contender(
        name="envbuilder build, nothing changed",
        command=[LAUNCHER, "build", "--target", "cpu", "--no-smoke", "--no-image", "--out", str(layout.out)],
    )
    compare("the build that does nothing", ours, [], runs=7)


def _symbols(layout: Layout) -> None:
    ours = Contender(name="envbuilder abi envs/serve", command=[LAUNCHER, "abi", str(layout.environment("serve"))])
    vllm = Contender(
        name="import vllm", command=[LAUNCHER, "run", "--out", str(layout.out), "--", "python", "-c", "import vllm._C; import vllm"]
    )
    compare("every extension's symbols, statically, against importing vLLM", ours, [vllm], runs=7)


if __name__ == "__main__":
    main()
