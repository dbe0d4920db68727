"""An image of somebody else's as the root filesystem: its layers stay as they are, and what is unsafe in them is settled above."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from envbuilder.errors import ConfigurationError, LockError, VerificationError
from envbuilder.images import foundation
from envbuilder.images.about import labels
from envbuilder.images.layers import LayerStore
from envbuilder.images.oci import Descriptor, Layout
from envbuilder.images.recipe import contents
from envbuilder.images.rootfs import User
from envbuilder.images.tree import whole
from envbuilder.images.verify import check_files
from envbuilder.images.write import write_images
from envbuilder.store.rootfs_image import RootfsImage, RootfsLayer, reference_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from envbuilder.console import Console
    from envbuilder.images.inputs import Inputs

USER = User(name="envbuilder", uid=1000)
KINDS = {"gzip": "application/vnd.docker.image.rootfs.diff.tar.gzip", "zstd": "application/vnd.oci.image.layer.v1.tar+zstd"}
PLAIN = "application/vnd.oci.image.layer.v1.tar"
Rows = dict[str, tuple[int, "bytes | str"]]  # path: mode, and content or a link's target


def tar(rows: Rows, hard: Mapping[str, str] | None = None, capable: Sequence[str] = ()) -> bytes:
    """Pack a layer; a path that ends with a slash is a folder's, `capable` are files that have capabilities."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, (mode, content) in rows.items():
            member = tarfile.TarInfo(path)
            member.mode = mode
            if path in capable:
                member.pax_headers = {"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04"}
            if path.endswith("/"):
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
            elif isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        for path, target in (hard or {}).items():
            member = tarfile.TarInfo(path)
            member.type, member.linkname, member.mode = tarfile.LNKTYPE, target, rows[target][0]
            archive.addfile(member)
    return packed.getvalue()


def made(folder: Path, *tars: bytes, kind: str = "gzip") -> tuple[RootfsImage, tuple[Path, ...]]:
    pack: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstandard.compress, "": bytes}
    layers, paths = [], []
    for content in tars:
        packed = pack[kind](content)
        value = hashlib.sha256(packed).hexdigest()
        (folder / value).write_bytes(packed)
        diff_id = f"sha256:{hashlib.sha256(content).hexdigest()}"
        layers.append(RootfsLayer(digest=f"sha256:{value}", size=len(packed), media_type=KINDS.get(kind, PLAIN), diff_id=diff_id))
        paths.append(folder / value)
    return RootfsImage(image="library/ubuntu", digest=f"sha256:{'e' * 64}", layers=tuple(layers)), tuple(paths)


BOTTOM: Rows = {
    "./etc/passwd": (0o644, b"root:x:0:0:root:/root:/bin/bash\nubuntu:x:1000:1000::/home/ubuntu:/bin/bash\n"),
    "./etc/group": (0o644, b"root:x:0:\nubuntu:x:1000:\n"),
    "usr/bin/su": (0o4755, b"root, please"),
    "usr/bin/python3.12": (0o755, b"python"),
    "usr/bin/gone": (0o4755, b"setuid, and deleted above"),
    "usr/share/old/a": (0o644, b""),
}
UPPER: Rows = {
    "usr/bin/.wh.gone": (0, b""),
    "usr/share/old/.wh..wh..opq": (0, b""),
    "usr/share/old/b": (0o644, b""),
    "etc/hostname": (0o644, b"x\n"),
}


@pytest.mark.parametrize("kind", ["gzip", "zstd", ""])
def test_what_lies_below_is_settled(tmp_path: Path, kind: str) -> None:
    """Nobody is root, no file makes one root, and the user's number is his alone (Ubuntu's images have a user 1000)."""
    locked, paths = made(tmp_path, tar(BOTTOM, {"usr/bin/su2": "usr/bin/su"}), tar(UPPER), kind=kind)
    found = foundation.found(locked, paths, python="3.12", user=USER)
    assert found.python == "/usr/bin/python3.12"
    files = {entry.path: (entry.mode, entry.open().read()) for entry in found.settling}
    assert files["etc/passwd"][1] == b"root:x:0:0:root:/root:/bin/bash\nenvbuilder:x:1000:1000::/home/envbuilder:/bin/sh\n"
    assert files["etc/group"][1] == b"root:x:0:\nenvbuilder:x:1000:\n"
    assert files["usr/bin/su"] == files["usr/bin/su2"] == (0o755, b"root, please")
    assert {"home/envbuilder", "home/envbuilder/.cache"} <= files.keys()
    assert "usr/bin/gone" not in files


def test_deletions_of_higher_layers_hold(tmp_path: Path) -> None:
    locked, paths = made(tmp_path, tar(BOTTOM), tar(UPPER))
    tree = foundation._seen(locked, paths)
    assert "usr/bin/gone" not in tree
    assert "usr/share/old/a" not in tree
    assert {"usr/share/old/b", "etc/hostname", "usr/bin/su"} <= tree.keys()
    assert not any(".wh." in path for path in tree)


def test_a_link_in_a_folder_s_place_takes_what_was_in_it(tmp_path: Path) -> None:
    """A hidden setuid file was written again, and with it the folder in the link's place: the image's own files were gone."""
    below: Rows = {**BOTTOM, "opt/tool/": (0o755, b""), "opt/tool/su": (0o4755, b"root"), "opt/tools/x": (0o644, b"")}
    below["srv/su"] = (0o4755, b"root")  # in a folder that the layer does not name
    above: Rows = {"opt/tool": (0o777, "tool-2"), "opt/tool-2/": (0o755, b""), "srv": (0o644, b"a file")}
    locked, paths = made(tmp_path, tar(below), tar(above))
    settling = {entry.path for entry in foundation.found(locked, paths, python="3.12", user=USER).settling}
    assert not {path for path in settling if path.startswith(("opt", "srv"))}
    assert {"opt/tool", "opt/tool-2", "opt/tools/x", "srv"} <= foundation._seen(locked, paths).keys()


def test_the_folders_of_what_is_settled_stay_as_they_are(tmp_path: Path) -> None:
    """A layer says what each folder is that it writes into: one that nobody but its owner could enter was open to all."""
    below: Rows = {**BOTTOM, "root/": (0o700, b""), "root/bin/": (0o711, b""), "root/bin/su": (0o4755, b"root"), "home/": (0o751, b"")}
    locked, paths = made(tmp_path, tar(below))
    found = whole(foundation.found(locked, paths, python="3.12", user=USER).settling)
    assert {path: found[path].mode for path in ("root", "root/bin", "root/bin/su", "home", "etc", "home/envbuilder")} == {
        "root": 0o700,
        "root/bin": 0o711,
        "root/bin/su": 0o755,
        "home": 0o751,
        "etc": 0o755,
        "home/envbuilder": 0o755,
    }


def test_a_file_with_capabilities_has_them_no_more(tmp_path: Path) -> None:
    """They make one root as setuid does, and no bit shows it; a second name of the file shows it even less."""
    below: Rows = {**BOTTOM, "usr/bin/ping": (0o755, b"raw sockets"), "usr/bin/plain": (0o755, b"")}
    locked, paths = made(tmp_path, tar(below, {"usr/bin/ping4": "usr/bin/ping"}, capable=["usr/bin/ping"]))
    files = {entry.path: (entry.mode, entry.open().read()) for entry in foundation.found(locked, paths, python="3.12", user=USER).settling}
    assert files["usr/bin/ping"] == files["usr/bin/ping4"] == (0o755, b"raw sockets")
    assert "usr/bin/plain" not in files


def test_an_image_without_that_python_is_refused(tmp_path: Path) -> None:
    locked, paths = made(tmp_path, tar(BOTTOM))
    with pytest.raises(ConfigurationError, match=r"has no Python 3\.11"):
        foundation.found(locked, paths, python="3.11", user=USER)


def test_a_layer_that_holds_another_tar_is_refused(tmp_path: Path) -> None:
    """The digest of the packed bytes is right, and that of the tar is what containers are told: both must be."""
    locked, paths = made(tmp_path, tar(BOTTOM))
    lying = replace(locked, layers=(replace(locked.layers[0], diff_id=f"sha256:{'0' * 64}"),))
    with pytest.raises(VerificationError, match="does not hold the tar"):
        foundation.found(lying, paths, python="3.12", user=USER)


@pytest.mark.parametrize(
    "content", [b"", b"no archive", gzip.compress(b"no tar, but long enough to be one" * 40, mtime=0)], ids=["empty", "text", "gzip"]
)
def test_a_damaged_layer_is_said_to_be_one(tmp_path: Path, content: bytes) -> None:
    locked, paths = made(tmp_path, tar(BOTTOM))
    paths[0].write_bytes(content)
    with pytest.raises(VerificationError, match="layer sha256:"):
        foundation.found(locked, paths, python="3.12", user=USER)


def test_libraries_are_found_through_links(tmp_path: Path) -> None:
    """What extension modules will find is read from them: glibc's version differs from Debian's."""
    rows: Rows = {
        "usr/lib/x86_64-linux-gnu/libc.so.6": (0o755, b"glibc"),
        "usr/lib/x86_64-linux-gnu/libstdc++.so.6.0.33": (0o644, b"gcc"),
        "usr/lib/x86_64-linux-gnu/libstdc++.so.6": (0o777, "libstdc++.so.6.0.33"),
        "usr/lib/x86_64-linux-gnu/libz.so.1": (0o777, "/usr/lib/nowhere"),
        "usr/lib/x86_64-linux-gnu/libgomp.so.1": (0o777, "libgomp.so.1"),
    }
    locked, paths = made(tmp_path, tar(rows))
    assert foundation.base_libraries(locked, paths, "x86_64") == {"libc.so.6": b"glibc", "libstdc++.so.6": b"gcc"}


# -- images over it ----------------------------------------------------------------------------------------------


@pytest.fixture
def over(make_inputs: Callable[..., Inputs], tmp_path: Path) -> Inputs:
    """Inputs whose root filesystem is an image of two layers, which lie in the store."""
    store = tmp_path / "store" / "layers" / "blobs"
    store.mkdir(parents=True)
    locked, paths = made(store, tar(BOTTOM), tar(UPPER))
    inputs = replace(make_inputs(), packages=(), python="3.12")
    return replace(inputs, foundation=foundation.found(locked, paths, python="3.12", user=USER))


def test_its_layers_are_the_lowest_and_the_same_bytes(over: Inputs, tmp_path: Path, console: Console) -> None:
    """A registry that has the base image stores nothing twice; whoever knows its digest finds it in ours."""
    layout = Layout(tmp_path / "image")
    written = write_images(over, layers=LayerStore(tmp_path / "store"), layout=layout, console=console)
    assert [it.name for it in written] == ["base", "serve", "quantize"]
    for image in layout.images():
        assert [row["digest"] for row in image.manifest["layers"][:2]] == [it.digest for it in over.foundation.locked.layers]  # type: ignore[union-attr]
        assert {row["mediaType"] for row in image.manifest["layers"][:2]} == {KINDS["gzip"]}
        assert image.manifest["layers"][2]["mediaType"] == KINDS["zstd"]
        name: Any = image.labels["envbuilder.image"]
        assert check_files(layout, image, over, name, {}).status == "pass"
        assert image.labels["envbuilder.rootfs"] == f"library/ubuntu@sha256:{'e' * 64}"


def test_another_layer_in_its_place_is_found(over: Inputs, tmp_path: Path, console: Console) -> None:
    layout = Layout(tmp_path / "image")
    write_images(over, layers=LayerStore(tmp_path / "store"), layout=layout, console=console)
    [base, *_] = layout.images()
    layers = [base.manifest["layers"][1], *base.manifest["layers"][1:]]
    changed = replace(base, manifest={**base.manifest, "layers": layers})
    check = check_files(layout, changed, over, "base", {})
    assert check.status == "fail"
    assert "in the lock" in check.detail


def test_what_an_image_says_names_it(over: Inputs) -> None:
    found = contents("serve", over)
    assert found["rootfs"]["image"] == "library/ubuntu"
    assert found["packages"] == []
    assert labels(found)["envbuilder.sources"].startswith("4 published wheels, root filesystem library/ubuntu")


# -- locking -----------------------------------------------------------------------------------------------------


class Held:
    """A registry that holds documents by digest."""

    def __init__(self) -> None:
        self.documents: dict[str, bytes] = {}
        self.reference = type("Reference", (), {"host": "a.example", "path": "library/ubuntu"})()

    def put(self, document: object) -> str:
        payload = json.dumps(document).encode()
        digest = f"sha256:{hashlib.sha256(payload).hexdigest()}"
        self.documents[digest] = payload
        return digest

    def manifest(self, digest: str) -> tuple[Descriptor, bytes] | None:
        return (Descriptor(media_type="", digest=digest, size=1), self.documents[digest]) if digest in self.documents else None

    def blob(self, blob: Descriptor) -> bytes:
        return self.documents[blob.digest]


def held(architecture: str = "arm64", diff_ids: int = 1) -> tuple[Any, str]:
    registry = Held()
    config = registry.put({"os": "linux", "architecture": architecture, "rootfs": {"diff_ids": [f"sha256:{'1' * 64}"] * diff_ids}})
    layer = {"mediaType": PLAIN, "digest": f"sha256:{'2' * 64}", "size": 5}
    return registry, registry.put({"config": {"mediaType": "", "digest": config, "size": 1}, "layers": [layer]})


def test_of_a_list_the_machine_s_image_is_locked() -> None:
    registry, digest = held()
    platforms = [{"os": "linux", "architecture": "amd64"}, {"os": "linux", "architecture": "arm64", "variant": "v8"}]
    rows = [{"digest": "sha256:other", "platform": platforms[0]}, {"digest": digest, "platform": platforms[1]}]
    both = registry.put({"manifests": rows})
    for asked in (digest, both):
        found = foundation.resolve("library/ubuntu", asked, "aarch64", registry)
        assert (found.digest, found.layers[0].diff_id) == (digest, f"sha256:{'1' * 64}")


def test_what_cannot_be_locked_is_said() -> None:
    registry, digest = held()
    with pytest.raises(LockError, match="is for linux/arm64"):
        foundation.resolve("library/ubuntu", digest, "x86_64", registry)
    with pytest.raises(LockError, match="has no library/ubuntu"):
        foundation.resolve("library/ubuntu", f"sha256:{'9' * 64}", "x86_64", registry)
    with pytest.raises(LockError, match="has no image for linux/x86_64"):
        foundation.resolve("library/ubuntu", registry.put({"manifests": []}), "x86_64", registry)
    registry, digest = held(diff_ids=2)
    with pytest.raises(LockError, match="is no image"):
        foundation.resolve("library/ubuntu", digest, "aarch64", registry)


def test_the_registry_is_the_user_s_to_name() -> None:
    """No host stands in a target or in a lock."""
    digest = f"sha256:{'0' * 64}"
    assert reference_of("library/ubuntu", digest, {"ENVBUILDER_IMAGE_REGISTRY": "a.example:5000/proxy/"}) == (
        f"a.example:5000/proxy/library/ubuntu@{digest}"
    )
    with pytest.raises(ConfigurationError, match="which registry has library/ubuntu"):
        reference_of("library/ubuntu", digest, {})
