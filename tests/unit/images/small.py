"""A target small enough for a unit test, made of real packages and wheels that the test writes itself."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile
from typing import TYPE_CHECKING

import zstandard

from envbuilder.images.inputs import EnvironmentInputs, Inputs, Package
from envbuilder.images.layers import Compression
from envbuilder.images.parts import gather
from envbuilder.images.rootfs import User
from envbuilder.images.wheels import Wheel
from envbuilder.store.debian import DebianPackage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def ar(members: Mapping[str, bytes]) -> bytes:
    parts = [b"!<arch>\n"]
    for name, content in members.items():
        parts += [f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode(), content, b"\n" * (len(content) % 2)]
    return b"".join(parts)


def tar(files: Mapping[str, bytes | str | None], *, mode: int = 0o644, kind: str = "xz") -> bytes:
    """Pack {path: bytes, link target, or None for a folder} the way dpkg-deb does."""
    packed = io.BytesIO()
    fast = {"preset": 0} if kind == "xz" else {}  # the usual one takes 94 MB and a hundredth of a second for each
    with tarfile.open(fileobj=packed, mode=f"w:{kind}", **fast) as archive:  # type: ignore[call-overload]
        for path, content in files.items():
            member = tarfile.TarInfo(f"./{path}")
            member.mode, member.mtime = mode, 1700000000
            if content is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(member)
            elif isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def deb(
    name: str, files: Mapping[str, bytes | str | None], *, extra: str = "", mode: int = 0o644, control: Mapping[str, bytes] | None = None
) -> bytes:
    text = f"Package: {name}\nVersion: 1.0-1\nArchitecture: amd64\n{extra}Description: a test\n more of it\n"
    members = {"control": text.encode(), **(control or {})}
    return ar({"debian-binary": b"2.0\n", "control.tar.xz": tar(members), "data.tar.xz": tar(files, mode=mode)})


def wheel(
    name: str, files: Mapping[str, bytes], *, version: str = "1.0", metadata: str = "", info: Mapping[str, bytes] | None = None
) -> bytes:
    folder = f"{name}-{version}.dist-info"
    every = {**files, f"{folder}/METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{metadata}".encode()}
    every |= {f"{folder}/WHEEL": b"Wheel-Version: 1.0\n", **{f"{folder}/{key}": value for key, value in (info or {}).items()}}
    rows = []
    for path, content in every.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(content)}")
    every[f"{folder}/RECORD"] = "\n".join([*rows, f"{folder}/RECORD,,", ""]).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in every.items():
            archive.writestr(zipfile.ZipInfo(path), content, zipfile.ZIP_DEFLATED)  # the same bytes at any time
    return packed.getvalue()


PACKAGES = {
    "base-files": deb("base-files", {"bin/tool": b"#!/bin/sh\n", "etc": None, "tmp": None, "usr/share/man/man1/tool.1": b"left out"}),
    "base-passwd": deb("base-passwd", {"usr/share/base-passwd/passwd.master": b"root:*:0:0:root:/root:/bin/bash\n"}),
    "ca-certificates": deb(
        "ca-certificates", {"usr/share/ca-certificates/mozilla/B.crt": b"B\n", "usr/share/ca-certificates/mozilla/A.crt": b"A\n"}
    ),
    "sudo": deb("sudo", {"usr/bin/sudo": b"root, please"}, mode=0o4755),
}
DEV = {"gcc": deb("gcc", {"usr/bin/gcc": b"compiles", "usr/share/doc/gcc/copyright": b"Format: x\nLicense: GPL-3+\nLicense: Artistic\n"})}

PROOFS = {
    "gates": [{"subject": "torch's build", "found": "1.0"}, {"subject": "vllm", "found": "1.0"}],
    "abi": [{"path": "torch/_C.so", "verdict": "ok"}, {"path": "vllm/_C.so", "verdict": "ok"}],
    "gpu_code": {
        "arch": "sm_121a",
        "files": [
            {
                "path": "torch/_C.so",
                "cubins": {"sm_80": 4, "sm_121a": 1},
                "ptx": {},
                "units": {"native": 1, "none": 3},
                "verdict": "native",
            },
            {"path": "vllm/_C.so", "cubins": {}, "ptx": {"compute_80": 2}, "units": {"jit": 2}, "verdict": "jit"},
        ],
    },
}


def small_inputs(folder: Path, **changes: Mapping[str, bytes]) -> Inputs:
    """Return inputs whose files lie in a folder; `serve` may bring other wheels."""
    packages = tuple(_package(folder, name, content, "rootfs") for name, content in PACKAGES.items())
    packages += tuple(_package(folder, name, content, "dev") for name, content in DEV.items())
    wheels = {
        "torch": wheel(
            "torch",
            {"torch/__init__.py": b"x = 1\n", "torch/_C.so": b""},
            metadata="Requires-Dist: sympy\nLicense-Expression: BSD-3-Clause\n",
        ),
        "sympy": wheel("sympy", {"sympy/__init__.py": b""}, metadata="Classifier: License :: OSI Approved :: BSD License\n"),
        "vllm": wheel("vllm", {"vllm/__init__.py": b""}, info={"entry_points.txt": b"[console_scripts]\nvllm = vllm.cli:main\n"}),
        "tqdm": wheel("tqdm", {"tqdm/__init__.py": b"bar\n"}),
        **changes.get("serve", {}),
    }
    quantize = {name: content for name, content in wheels.items() if name != "vllm"}
    environments = {
        "serve": EnvironmentInputs(
            name="serve",
            wheels=_wheels(folder, wheels),
            asked=("vllm", "torch"),
            overlays={"_overlay.pth": b"import x\n"},
            variables={"VLLM_NO_USAGE_STATS": "1"},
            arguments=("--attention-backend", "TRITON_ATTN"),
            proofs=PROOFS,
        ),
        "quantize": EnvironmentInputs(name="quantize", wheels=_wheels(folder, quantize), asked=("torch",)),
    }
    every = {it.sha256: it for environment in environments.values() for it in environment.wheels}
    return Inputs(
        target="test",
        release="1",
        machine="x86_64",
        python="3.11",
        lock="0" * 64,
        lock_files={"inputs.toml": b"# a lock\n"},
        target_file=b"{}",
        user=User(name="envbuilder", uid=1000),
        compression=Compression(level=3, library=".".join(map(str, zstandard.ZSTD_VERSION))),
        packages=packages,
        environments=environments,
        parts=gather(list(every.values()), packages, root=folder),
    )


def _package(folder: Path, name: str, content: bytes, layer: str) -> Package:
    path = folder / f"{name}_1.0-1_amd64.deb"
    path.write_bytes(content)
    locked = DebianPackage(
        name=name,
        version="1.0-1",
        architecture="amd64",
        path=f"pool/main/{path.name}",
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        layer=layer,  # type: ignore[arg-type]
    )
    return Package(locked=locked, path=path)


def _wheels(folder: Path, contents: Mapping[str, bytes]) -> tuple[Wheel, ...]:
    found = []
    for name, content in sorted(contents.items()):
        path = folder / f"{name}-1.0-py3-none-any.whl"
        path.write_bytes(content)
        found.append(Wheel(name=name, version="1.0", sha256=hashlib.sha256(content).hexdigest(), path=path))
    return tuple(found)
