"""The root filesystem: what is unpacked, what is left out, and what maintainer scripts would have made."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envbuilder.errors import VerificationError
from envbuilder.images import loader_cache
from envbuilder.images.deb import read_deb
from envbuilder.images.rootfs import User, root_tree
from envbuilder.images.tree import Entry, Kind, difference, file, folder, symlink, whole
from tests.unit.images.small import ar, deb, tar

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

USER = User(name="envbuilder", uid=1000)


def tree_of(tmp_path: Path, *packages: bytes) -> dict[str, Entry]:
    debs = []
    for number, content in enumerate(packages):
        path = tmp_path / f"{number}.deb"
        path.write_bytes(content)
        debs.append(read_deb(path))
    return root_tree(debs, machine="x86_64", user=USER)


def read(tree: Mapping[str, Entry], path: str) -> bytes:
    with tree[path].open() as stream:
        return stream.read()


def test_what_lies_in_bin_lies_in_usr_bin_and_bin_is_a_link(tmp_path: Path) -> None:
    """Debian's merged /usr: packages still ship bin/, and a real folder there would hide half of the programs."""
    tree = tree_of(tmp_path, deb("a", {"bin/sh": b"sh", "usr/bin/env": b"env"}))
    assert tree["bin"].kind is Kind.SYMLINK
    assert tree["bin"].target == "usr/bin"
    assert read(tree, "usr/bin/sh") == b"sh"


def test_no_bit_that_makes_another_user_survives(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, deb("sudo", {"usr/bin/sudo": b"x"}, mode=0o6755))
    assert tree["usr/bin/sudo"].mode == 0o755


def test_manuals_go_and_licences_stay(tmp_path: Path) -> None:
    files: dict[str, bytes | str | None] = {
        "usr/share/man/man1/a.1": b"m",
        "usr/share/doc/a/changelog": b"c",
        "usr/share/doc/a/copyright": b"l",
        "usr/share/locale/de/a.mo": b"l",
    }
    tree = tree_of(tmp_path, deb("a", files))
    assert [path for path in tree if path.startswith("usr/share/") and tree[path].kind is Kind.FILE] == ["usr/share/doc/a/copyright"]
    assert "usr/share/man" not in tree


def test_dpkg_knows_every_package_as_installed(tmp_path: Path) -> None:
    """Without dpkg's records, `apt-get install` in an image that starts from ours would install everything anew."""
    conffiles = {"conffiles": b"/etc/a.conf\n", "md5sums": b"d41d8cd98f00b204e9800998ecf8427e  etc/a.conf\n", "postinst": b"#!/bin/sh\n"}
    tree = tree_of(tmp_path, deb("a", {"etc/a.conf": b""}, extra="Multi-Arch: same\n", control=conffiles))
    status = read(tree, "var/lib/dpkg/status").decode()
    assert status.startswith(
        "Package: a\nStatus: install ok installed\nConffiles:\n /etc/a.conf d41d8cd98f00b204e9800998ecf8427e\nVersion: 1.0-1\n"
    )
    assert status.endswith("Description: a test\n more of it\n")
    assert read(tree, "var/lib/dpkg/info/a:amd64.list") == b"/etc/a.conf\n"
    assert tree["var/lib/dpkg/info/a:amd64.postinst"].mode == 0o755


def test_accounts_are_debian_s_and_one_user_that_is_not_root(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, deb("base-passwd", {"usr/share/base-passwd/passwd.master": b"root:*:0:0::/root:/bin/sh\n"}))
    assert read(tree, "etc/passwd") == b"root:*:0:0::/root:/bin/sh\nenvbuilder:x:1000:1000::/home/envbuilder:/bin/bash\n"
    assert (tree["home/envbuilder"].uid, tree["home/envbuilder"].gid) == (1000, 1000)


def test_the_ca_bundle_is_made_in_order_and_openssl_finds_it(tmp_path: Path) -> None:
    """update-ca-certificates is a maintainer script's work; without it every HTTPS connection in the image fails."""
    certificates: dict[str, bytes | str | None] = {
        "usr/share/ca-certificates/mozilla/B.crt": b"B",
        "usr/share/ca-certificates/mozilla/A.crt": b"A\n",
    }
    tree = tree_of(tmp_path, deb("ca-certificates", certificates))
    assert read(tree, "etc/ssl/certs/ca-certificates.crt") == b"A\nB\n"
    assert tree["usr/lib/ssl/cert.pem"].target == "/etc/ssl/certs/ca-certificates.crt"
    assert read(tree, "etc/ca-certificates.conf") == b"mozilla/A.crt\nmozilla/B.crt\n"


def test_alternatives_lead_to_the_compiler(tmp_path: Path) -> None:
    """Triton looks for `cc`, which is no file of any package."""
    tree = tree_of(tmp_path, deb("gcc", {"usr/bin/gcc": b"x"}))
    assert tree["usr/bin/cc"].target == "/etc/alternatives/cc"
    assert tree["etc/alternatives/cc"].target == "/usr/bin/gcc"


def test_two_packages_with_one_path_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="/usr/bin/x comes with two packages"):
        tree_of(tmp_path, deb("a", {"usr/bin/x": b"1"}), deb("b", {"usr/bin/x": b"22"}))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive",
        deb("a", {"x": b"y" * 5000})[:-300],
        ar({"debian-binary": b"2.0\n"}),
        ar({"control.tar.lzip": b"", "data.tar.xz": b""}),
    ],
)
def test_a_damaged_package_is_said_to_be_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.deb"
    path.write_bytes(content)
    with pytest.raises(VerificationError, match=r"x\.deb cannot be read as a Debian package"):
        read_deb(path)


def test_a_package_cannot_leave_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "x.deb"
    path.write_bytes(
        ar({"debian-binary": b"2.0\n", "control.tar.xz": tar({"control": b"Package: x\n"}), "data.tar.xz": tar({"../../etc/passwd": b""})})
    )
    with pytest.raises(VerificationError) as caught:
        read_deb(path)
    assert "leaves its folder" in caught.value.why


def test_gzip_and_zstd_packages_are_read_too(tmp_path: Path) -> None:
    """Ubuntu's are zstd."""
    import zstandard  # noqa: PLC0415

    packed = zstandard.ZstdCompressor().compress(tar({"etc/x": b"y"}, kind=""))
    path = tmp_path / "x.deb"
    path.write_bytes(
        ar({"debian-binary": b"2.0\n", "control.tar.gz": tar({"control": b"Package: x\n"}, kind="gz"), "data.tar.zst": packed})
    )
    (entry,) = read_deb(path).entries
    assert (entry.path, entry.open().read()) == ("etc/x", b"y")


def test_a_layer_above_holds_only_what_is_new() -> None:
    lower = whole([file("a/x", "1"), file("a/y", "1"), folder("b")])
    upper = whole([file("a/x", "1"), file("a/y", "2"), folder("b"), symlink("c", "a")])
    assert list(difference(upper, lower)) == ["a", "a/y", "c"]


@given(st.sets(st.text("ab/-.", min_size=1, max_size=8).map(lambda text: text.strip("/")).filter(lambda text: text and "//" not in text)))
def test_every_folder_comes_before_what_is_in_it(paths: set[str]) -> None:
    """An engine that unpacks in order would else make a folder of its own, with other rights and another time."""
    leaves = [path for path in paths if not any(other.startswith(f"{path}/") for other in paths)]
    order = list(whole(file(path, "") for path in leaves))
    assert all(order.index(path.rpartition("/")[0]) < order.index(path) for path in order if "/" in path)


# -- the loader's cache ------------------------------------------------------------------------------------------


def test_the_loader_s_order_counts_digits_as_numbers() -> None:
    """The loader searches the cache by halving it: in another order it would miss libraries (_dl_cache_libcmp)."""
    assert loader_cache._order("liba.so.10") > loader_cache._order("liba.so.9")
    assert loader_cache._order("lib1.so") > loader_cache._order("liba.so")
    assert loader_cache._order("liba.so.1") > loader_cache._order("liba.so")


def test_an_empty_cache_is_one_all_the_same() -> None:
    payload = loader_cache.loader_cache({}, "aarch64")
    assert payload[:20] == b"glibc-ld.so.cache1.1"
    assert struct.unpack_from("<II", payload, 20) == (0, 0)
    assert len(payload) == 48
