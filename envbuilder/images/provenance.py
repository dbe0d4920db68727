"""Where images come from: an in-toto statement with the SLSA predicate, signed when a key is given.

The statement has no time in it: the same inputs give the same statement. A signature is a DSSE envelope around it, with
an Ed25519 key (RFC 8032, whose signatures are the same every time as well).
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from envbuilder import __version__
from envbuilder.errors import ConfigurationError, VerificationError
from envbuilder.files import canonical_json, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from envbuilder.images.inputs import Inputs

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
PAYLOAD = "application/vnd.in-toto+json"
_BUILD_TYPE = "urn:envbuilder:image:1"


def statement(inputs: Inputs, subjects: Mapping[str, str]) -> dict[str, Any]:
    """Return the statement on `subjects` ({name: sha256 in hex}): what they were made from, by what, with which parameters."""
    wheels = {it.sha256: it for environment in inputs.environments.values() for it in environment.wheels}
    sources = [source for environment in inputs.environments.values() for it in environment.compiled.values() for source in it["sources"]]
    rootfs = inputs.rootfs
    dependencies = [
        *([{"name": f"oci:{rootfs.image}", "digest": {"sha256": rootfs.digest.removeprefix("sha256:")}}] if rootfs else []),
        *({"name": it["file"], "digest": {"sha256": it["sha256"]}} for it in sources),
        *(
            {"name": f"pkg:pypi/{it.name}@{it.version}", "digest": {"sha256": it.sha256}, "annotations": {"file": it.filename}}
            for it in wheels.values()
        ),
        *(
            {"name": f"pkg:deb/debian/{it.locked.name}@{it.locked.version}", "digest": {"sha256": it.locked.sha256}}
            for it in inputs.packages
        ),
    ]
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": value}} for name, value in sorted(subjects.items())],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": _BUILD_TYPE,
                "externalParameters": {
                    "target": inputs.target,
                    "release": inputs.release,
                    "platform": inputs.platform,
                    "python": inputs.python,
                },
                "internalParameters": {
                    "lock": f"sha256:{inputs.lock}",
                    "compression": ["zstd", inputs.compression.level, inputs.compression.library],
                },
                "resolvedDependencies": sorted(dependencies, key=lambda it: str(it["name"])),
            },
            "runDetails": {"builder": {"id": _BUILD_TYPE, "version": {"envbuilder": __version__}}},
        },
    }


def fault(statement_: Mapping[str, Any], subjects: Mapping[str, str], lock: str, inputs: Inputs | None) -> str:
    """Return what is wrong with a statement that should be on `subjects` (and may be on more) and on a lock; nothing if nothing is.

    With `inputs`, all that it says but its subjects must be what these give.
    """
    try:
        stated = {str(it["name"]): str(it["digest"]["sha256"]) for it in statement_["subject"]}
        kind = statement_["_type"], statement_["predicateType"]
        locked = statement_["predicate"]["buildDefinition"]["internalParameters"]["lock"]
    except (KeyError, TypeError):
        return "it cannot be read"
    if kind != (STATEMENT, PREDICATE):
        return f"it is a {kind[0]} with a {kind[1]}, not an in-toto statement with SLSA's predicate"
    if other := sorted(name for name, value in subjects.items() if stated.get(name) != value):
        return f"{other[0]} is {subjects[other[0]]}, and the statement is on {stated.get(other[0])}"
    if locked != lock:
        return f"it is on {locked}, not on {lock}"
    # As text, and with the subjects it has: 1 is no 1.0 and no true here, and no row stands twice or says more than it may.
    if inputs and canonical_json(statement_) != canonical_json(statement(inputs, stated)):
        return "what it says of inputs, builder and parameters is not what the lock gives"
    return ""


def signed(document: Mapping[str, Any], key: Path) -> dict[str, Any]:
    """Return a DSSE envelope around a document. Raises ConfigurationError for a key that is none of ours."""
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(key, "private", str(error)) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise _no_key(key, "private", f"It is a {type(private).__name__}.")
    payload = canonical_json(document)
    return {
        "payloadType": PAYLOAD,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": "", "sig": base64.b64encode(private.sign(_encoded(payload))).decode()}],
    }


def opened(envelope: Mapping[str, Any], key: Path) -> dict[str, Any]:
    """Return the document in an envelope, if that key signed it. Raises VerificationError or ConfigurationError."""
    try:
        public = serialization.load_pem_public_key(key.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(key, "public", str(error)) from error
    if not isinstance(public, Ed25519PublicKey):
        raise _no_key(key, "public", f"It is a {type(public).__name__}.")
    try:
        payload = base64.b64decode(envelope["payload"], validate=True)
        signatures: Sequence[bytes] = [base64.b64decode(it["sig"]) for it in envelope["signatures"]]
        if envelope["payloadType"] != PAYLOAD or not any(_verifies(public, it, payload) for it in signatures):
            raise VerificationError("the provenance is not signed by that key", next="Ask who published the image for the right key.")
        document: dict[str, Any] = parse_json(payload)
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationError("the signed provenance cannot be read", why=f"{type(error).__name__}: {error}") from error
    return document


def _verifies(public: Ed25519PublicKey, signature: bytes, payload: bytes) -> bool:
    try:
        public.verify(signature, _encoded(payload))
    except InvalidSignature:
        return False
    return True


def _encoded(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed says its own kind and length."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def _no_key(path: Path, kind: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"{path} is no {kind} Ed25519 key",
        why=why,
        next="Make a pair: `openssl genpkey -algorithm ed25519 -out key.pem`, then `openssl pkey -in key.pem -pubout -out key.pub`.",
    )
