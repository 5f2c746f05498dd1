"""Signatures under a journal's head, by the signer that is there: ssh-keygen, cosign or an AWS KMS key.

Each signature stands under a small statement ``signatures/<seq>-<signer>.json`` that names the migration and
the number and hash of its newest record at that moment. The next record has the digests of both files. Who
rewrites the whole archive cannot make the signatures anew.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateshift.archive.files import atomic_write, file_digest
from gateshift.archive.layout import is_file, leftover
from gateshift.errors import ExternalError, InputError
from gateshift.migration.identity import identity
from gateshift.migration.journal import Journal
from gateshift.migration.records import Head, Record
from gateshift.plan import canonical_json, parse_json

__all__ = ["FOLDER", "asked_kinds", "check", "sign", "uncovered"]

FOLDER = "signatures"
_NAMESPACE = "gateshift"
_KMS = re.compile(r"^awskms:///(?P<key>.+)$|^(?P<arn>arn:aws[\w-]*:kms:.+)$")


def sign(migration: Path, key: str, *, endpoint_url: str | None = None) -> Path:
    """Sign the head of *migration* with *key*, note it in the journal and return the statement's path.

    *key* is a KMS key (``arn:aws:kms:…`` or ``awskms:///ID``), a cosign key (``cosign.key`` or a
    ``gcpkms://…`` address) or an SSH private key. Raises :class:`~gateshift.errors.InputError` when there is
    nothing to sign with, or no journal to sign.
    """
    kind = _kind(key)
    if not (migration / "journal.jsonl").exists():
        raise InputError(
            f"{migration}: no archive here",
            hint="name a migration's folder (outputs/<migration>), or outputs itself",
        )
    with Journal.open(migration / "journal.jsonl", who=identity(), run="sign") as journal:
        if not journal.records:
            raise InputError(f"{migration.name}: the journal is empty, there is nothing to sign")
        newest = journal.records[-1]
        path = _sign(migration, kind, Head(newest.seq, newest.hash), key, endpoint_url)
        files = {p.name: file_digest(p) for p in (path, path.with_suffix(".sig"))}
        journal.append("note.signed", files=files, signed=newest.seq)
    return path


def _sign(migration: Path, kind: str, head: Head, key: str, endpoint_url: str | None) -> Path:
    statement = {
        "migration": migration.name,
        "seq": head.seq,
        "hash": head.hash,
        "signed": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": identity(),
        "signer": kind,
        **({"key": key} if kind == "kms" else {}),
    }
    path = migration / FOLDER / f"{head.seq:06d}-{kind}.json"
    path.parent.mkdir(exist_ok=True)
    text = (canonical_json(statement) + "\n").encode()
    signature = {"ssh": _ssh_sign, "cosign": _cosign_sign, "kms": _kms_sign}[kind](text, key, endpoint_url)
    atomic_write(path.with_suffix(".sig"), signature)
    atomic_write(path, text)
    return path


def check(
    migration: Path,
    records: Sequence[Record],
    *,
    signers: Path | None = None,
    key: str = "",
    ask_kms: bool = False,
    kms_key: str = "",
    endpoint_url: str | None = None,
) -> list[tuple[Path, str]]:
    """Return what is wrong with the signatures of *migration*: (file, sentence) each; empty when all hold.

    Their bytes are compared with the digests in the journal. SSH signatures are checked by ssh-keygen where
    it is installed, for being by one of *signers* (an allowed_signers file) when it is given; cosign's with
    *key*, its public key; KMS is asked when *ask_kms* about the key that the statement names, or about
    *kms_key* when it is given: whoever made the archive anew may name a key of their own. Whoever asks for a
    kind of signature and finds none of it is told so: an archive that was made anew has none either. Raises
    :class:`~gateshift.errors.InputError` when there is no file *signers*.
    """
    if signers is not None and not signers.is_file():
        raise InputError(f"{signers}: no such file", hint="name an allowed_signers file of ssh-keygen")
    folder = migration / FOLDER
    listed = _listed(records)
    found = [(folder / n, "is missing") for n in sorted(listed) if not os.path.lexists(folder / n)]
    for kind in asked_kinds(signers=signers, key=key, ask_kms=ask_kms):
        if not any(n.endswith(f"-{kind}.json") for n in listed):
            found.append((folder, f"nothing is signed by a key of the kind that was asked for ({kind})"))
    for path in sorted(p for p in folder.glob("*") if not leftover(p)):
        pair = path.with_suffix(".sig" if path.suffix == ".json" else ".json")
        if not is_file(path):
            found.append((path, "is not a file"))
        elif path.name not in listed:
            found.append((path, "is not one that the journal knows"))
        elif file_digest(path) != listed[path.name]:
            found.append((path, "was changed after it was signed"))
        elif path.suffix == ".json" and pair.name not in listed:
            # Without this a statement that is listed alone would count as signed and never be checked.
            found.append((path, "has no signature that the journal knows"))
        elif path.suffix == ".json" and is_file(pair):
            kms = ask_kms, kms_key, endpoint_url
            found += _one(path, pair, migration.name, records, signers=signers, key=key, kms=kms)
    return found


def asked_kinds(*, signers: Path | None, key: str, ask_kms: bool) -> list[str]:
    """Return the kinds of signatures that the arguments of :func:`check` ask for."""
    asked = {"ssh": signers is not None, "cosign": bool(key), "kms": ask_kms}
    return [kind for kind, wanted in asked.items() if wanted]


def uncovered(records: Sequence[Record], kinds: Collection[str]) -> str:
    """Say which records are newer than the newest signature of one of *kinds*; empty when none are.

    A signature holds for the records up to its own. Who keeps an older one can write anew what follows it.
    """
    names = (name.removesuffix(".json").partition("-") for name in _listed(records) if name.endswith(".json"))
    signed = max((int(seq) for seq, _, kind in names if kind in kinds and seq.isdecimal()), default=0)
    later = [r.seq for r in records if r.seq > signed and r.kind != "note.signed"]
    return f"records {later[0]} to {later[-1]} are under no signature yet" if signed and later else ""


def _listed(records: Sequence[Record]) -> dict[str, str]:
    """Return the digests of the signatures' files that the journal knows, by name."""
    return {n: d for r in records if r.kind == "note.signed" for n, d in r.data["files"].items()}


def _one(
    path: Path,
    signature: Path,
    name: str,
    records: Sequence[Record],
    *,
    signers: Path | None,
    key: str,
    kms: tuple[bool, str, str | None],
) -> list[tuple[Path, str]]:
    text, sealed = path.read_bytes(), signature.read_bytes()
    try:
        said: dict[str, Any] = parse_json(text)
        kind, seq = str(said["signer"]), int(said["seq"])
        if (canonical_json(said) + "\n").encode() != text:
            raise ValueError("other bytes than were written")
    except (ValueError, KeyError, TypeError) as error:
        return [(path, f"is not a statement: {error}")]
    problems = []
    if said.get("migration") != name:
        problems.append((path, f"is of migration {said.get('migration')}"))
    if path.name != f"{seq:06d}-{kind}.json":
        # Which kinds are there is told by the names: one of another kind would be checked by nobody.
        problems.append((path, f"says that it is signature {seq:06d} by {kind}"))
    if not 0 < seq <= len(records) or records[seq - 1].hash != said.get("hash"):
        problems.append((path, f"names a record {seq} that the journal does not have"))
    if kind == "ssh":
        wrong = _ssh_check(text, sealed, signers)
    elif kind == "cosign":
        wrong = _cosign_check(text, sealed, key)
    elif kind == "kms":
        ask, wanted, endpoint = kms
        wrong = _kms_check(text, sealed, wanted or str(said.get("key", "")), endpoint) if ask else ""
    else:
        wrong = f"is by an unknown signer {kind}"
    return [*problems, (signature, wrong)] if wrong else problems


def _kind(key: str) -> str:
    if _KMS.match(key):
        return "kms"
    kind = "cosign" if "://" in key or key.endswith("cosign.key") else "ssh"
    tool = {"ssh": "ssh-keygen", "cosign": "cosign"}[kind]
    if shutil.which(tool) is None:
        raise InputError(f"{key}: {tool} is not installed", hint=f"install {tool}, or name another key")
    if kind == "ssh" and not Path(key).is_file():
        raise InputError(f"{key}: no such key", hint="name an SSH private key, cosign.key or a KMS key's ARN")
    return kind


def _run(command: list[str], text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, input=text, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExternalError(f"{command[0]} did not work: {error}", hint="sign again when it does") from None


def _ssh_sign(text: bytes, key: str, endpoint: str | None) -> bytes:
    del endpoint
    done = _run(["ssh-keygen", "-Y", "sign", "-f", key, "-n", _NAMESPACE], text)
    if done.returncode:
        raise ExternalError(f"ssh-keygen did not sign: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _ssh_check(text: bytes, signature: bytes, signers: Path | None) -> str:
    if shutil.which("ssh-keygen") is None:
        return "" if signers is None else "cannot be checked: ssh-keygen is not installed"
    with tempfile.NamedTemporaryFile(suffix=".sig") as file:
        file.write(signature)
        file.flush()
        if signers is None:
            command = ["check-novalidate", "-n", _NAMESPACE, "-s", file.name]
        else:
            found = _run(["ssh-keygen", "-Y", "find-principals", "-f", str(signers), "-s", file.name])
            principals = found.stdout.decode().split()
            if found.returncode or not principals:
                return f"is by none of the signers in {signers.name}"
            command = ["verify", "-f", str(signers), "-I", principals[0], "-n", _NAMESPACE, "-s", file.name]
        done = _run(["ssh-keygen", "-Y", *command], text)
    return "" if done.returncode == 0 else "does not belong to its statement"


def _cosign_sign(text: bytes, key: str, endpoint: str | None) -> bytes:
    del endpoint
    done = _run(["cosign", "sign-blob", "--yes", "--key", key, "-"], text)
    if done.returncode:
        raise ExternalError(f"cosign did not sign: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.strip() + b"\n"


def _cosign_check(text: bytes, signature: bytes, key: str) -> str:
    if not key:
        return ""
    if shutil.which("cosign") is None:
        return "cannot be checked: cosign is not installed"
    with tempfile.NamedTemporaryFile(suffix=".sig") as file:
        file.write(signature)
        file.flush()
        done = _run(["cosign", "verify-blob", "--key", key, "--signature", file.name, "-"], text)
    return "" if done.returncode == 0 else "does not belong to its statement"


def _kms(endpoint: str | None) -> Any:
    import boto3  # noqa: PLC0415 - only who signs with KMS waits for it

    return boto3.client("kms", endpoint_url=endpoint)


def _kms_id(key: str) -> str:
    found = _KMS.match(key)
    return (found["key"] or found["arn"]) if found else key


def _kms_arguments(text: bytes, key: str, client: Any) -> dict[str, Any]:
    public = client.get_public_key(KeyId=_kms_id(key))
    return {
        "KeyId": _kms_id(key),
        "Message": hashlib.sha256(text).digest(),
        "MessageType": "DIGEST",
        "SigningAlgorithm": next(a for a in public["SigningAlgorithms"] if a.endswith("SHA_256")),
    }


def _kms_sign(text: bytes, key: str, endpoint: str | None) -> bytes:
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - as boto3

    try:
        client = _kms(endpoint)
        return base64.b64encode(client.sign(**_kms_arguments(text, key, client))["Signature"]) + b"\n"
    except (BotoCoreError, ClientError, StopIteration) as error:
        raise ExternalError(f"KMS did not sign with {key}: {error}") from None


def _kms_check(text: bytes, signature: bytes, key: str, endpoint: str | None) -> str:
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - as boto3

    try:
        raw = base64.b64decode(signature.strip(), validate=True)
    except ValueError:
        return "is no signature"
    try:
        client = _kms(endpoint)
        good = client.verify(**_kms_arguments(text, key, client), Signature=raw)["SignatureValid"]
    except (BotoCoreError, ClientError) as error:
        return f"does not hold by KMS: {error}"
    return "" if good else "does not belong to its statement"
