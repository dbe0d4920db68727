"""Places to write to."""

from __future__ import annotations

from envbuilder.doctor.commands import quoted
from envbuilder.doctor.model import Severity, fail, info, ok, skip, warn
from envbuilder.doctor.registry import check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envbuilder.doctor.model import Verdict
    from envbuilder.facts.model import Place, Snapshot

_GB = 10**9
_MODELS = "Hugging Face's cache"
_COMPILES_HERE = ("temporary files", "Triton's cache", "FlashInfer's cache", "vLLM's cache")


_TMPFS_FULL = 16 << 20


def _measured(s: Snapshot) -> list[Place]:
    """Return the places whose room is known and counts: what may not be written to (a read-only image is always "full") does not.

    btrfs counts no inodes, and says 0 bytes when its chunks for metadata are used up: two zeros there are a full disk.
    """
    return [place for place in s.places or () if place.writable and (place.inodes or place.free_bytes or place.filesystem == "btrfs")]


def _seen(place: Place, what: str) -> tuple[str, str]:
    return f"{place.purpose} ({place.path})", what


@check("EB-DISK-001", "disk-nearly-full", Severity.BLOCKS, needs=("places",))
def nearly_full(s: Snapshot) -> Verdict:
    places = sorted(_measured(s), key=lambda place: place.free_bytes)
    if not places:
        return skip("free space was not measured")
    # A small /tmp in memory is how many systems come; only a full one stops anything.
    in_memory = [place for place in places if place.filesystem == "tmpfs" and place.free_bytes >= _TMPFS_FULL]
    for least in [place for place in places if place not in in_memory][:1]:
        seen = _seen(least, f"{least.free_bytes / _GB:.1f} GB free")
        # An environment takes 8.6 GB, its wheels 4.3, the image as much again.
        if least.free_bytes < 10 * _GB:
            return (fail if least.free_bytes < 2 * _GB else warn)(seen, expected="20 GB for a build, more for models")
    seen = _seen(places[0], f"{places[0].free_bytes / _GB:.1f} GB free")
    if in_memory and in_memory[0].free_bytes < 10 * _GB:
        return info(seen, note="It lies in memory: a build needs TMPDIR elsewhere.")
    return ok(seen)


@check("EB-DISK-002", "disk-no-inodes", Severity.BLOCKS, needs=("places",))
def no_inodes(s: Snapshot) -> Verdict:
    places = [place for place in _measured(s) if place.inodes and place.filesystem != "tmpfs"]
    if not places:
        return skip("this filesystem does not count inodes")
    least = min(places, key=lambda place: place.free_inodes)
    seen = _seen(least, f"{least.free_inodes} of {least.inodes} inodes free")
    return fail(seen, expected="200,000: an environment has 66,000 files") if least.free_inodes < 70_000 else ok(seen)


@check("EB-DISK-003", "cache-not-writable", Severity.BLOCKS, needs=("places",))
def not_writable(s: Snapshot) -> Verdict:
    closed = [place for place in s.places or () if not place.writable and place.purpose != "the environment"]
    # A model cache that can be read is a shared one: models are served from it, and it is not one's own to take.
    shared = [place for place in closed if place.purpose == _MODELS and place.exists and s.checkpoints]
    closed = [place for place in closed if place not in shared]
    if not closed and shared:
        return info(_seen(shared[0], "readable, not writable by you"), note="New models need another place: export HF_HOME.")
    if not closed:
        return ok("every cache is writable")
    own = [quoted(place.path) for place in closed if place.exists and place.purpose != "temporary files"]
    commands = (f'sudo chown -R "$USER": {" ".join(own)}',) if own else None
    return fail(*(_seen(place, "not writable by you") for place in closed[:3]), expected="writable", commands=commands)


@check("EB-DISK-004", "cache-noexec", Severity.BLOCKS, needs=("places",))
def noexec(s: Snapshot) -> Verdict:
    closed = [place for place in s.places or () if place.noexec and place.purpose in _COMPILES_HERE]
    # A /tmp without exec is good practice on servers, and only builds are stopped by it.
    caches = [place for place in closed if place.purpose != "temporary files"]
    if caches:
        return fail(*(_seen(place, "mounted noexec") for place in caches[:3]), expected="a mount that allows programs")
    return info(_seen(closed[0], "mounted noexec"), note="Builds need TMPDIR elsewhere.") if closed else ok("every cache allows programs")


@check("EB-DISK-005", "cache-on-network", Severity.SLOW, needs=("places",))
def on_network(s: Snapshot) -> Verdict:
    far = [
        place
        for place in s.places or ()
        if place.filesystem.startswith(("nfs", "cifs", "smb", "fuse.sshfs", "9p")) and place.purpose in _COMPILES_HERE
    ]
    return (
        info(*(_seen(place, place.filesystem) for place in far[:3]), note="Locks and renames are slow there.")
        if far
        else ok("every cache is on a local disk")
    )
