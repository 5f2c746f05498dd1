"""The manifest of one run: what ran, with which versions, and the hash of each file it left."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateshift.archive.excerpt import JOURNAL, excerpt
from gateshift.archive.files import atomic_write, file_digest
from gateshift.archive.layout import is_file, leftover
from gateshift.archive.parquet import METRICS, write_metrics
from gateshift.plan import parse_json

if TYPE_CHECKING:
    from gateshift.migration.journal import Journal

__all__ = ["KEPT", "MANIFEST", "files_of", "last_seal", "read_manifest", "seal", "shared_files"]

MANIFEST = "manifest.json"
KEPT = re.compile(r"manifest-\d+\.json")
"""Names of the manifests of a run's earlier seals."""


def files_of(folder: Path) -> list[Path]:
    """Return a run's files, without the manifest itself and without half-written ones."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST and not leftover(p))


def shared_files(migration: Path) -> list[Path]:
    """Return the files of a migration that belong to no single run: approvals given from outside."""
    return sorted(p for p in (migration / "approvals").glob("*.json") if p.is_file())


def last_seal(folder: Path, journal: Journal | None) -> str:
    """Return the SHA-256 of the manifest that the journal has of *folder*; empty when it has none."""
    for record in reversed(journal.records if journal is not None else ()):
        if record.kind == "archive.sealed" and record.data["run"] == folder.name:
            return str(record.data["manifest"])
    return ""


def seal(folder: Path, *, journal: Journal | None = None) -> str:
    """Write the manifest of *folder* and return its SHA-256.

    Sealing again replaces it; the one that the journal knows is kept beside it (``manifest-1.json``).
    """
    earlier = _keep(folder, last_seal(folder, journal))
    for recording in folder.rglob("samples.jsonl"):
        known = earlier.get(str(recording.relative_to(folder)), {})
        # The same samples under another version of pyarrow would be other bytes than were sealed.
        if known.get("sha256") != file_digest(recording) or not recording.with_name(METRICS).exists():
            # A table of what lies beside it: a line that it cannot read must not cost the run its seal.
            with suppress(ValueError, KeyError, TypeError):
                write_metrics(recording)
    if journal is not None and journal.records:
        own = excerpt(journal.records, folder.name, journal.records[-1].seq)
        atomic_write(folder / JOURNAL, own)
    content: dict[str, Any] = {
        "schema": 1,
        "run": folder.name,
        "sealed": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git(folder),
        "versions": _versions(),
        "systems": _systems(folder.parent, journal),
        "files": {
            str(p.relative_to(folder)): {"sha256": file_digest(p), "bytes": p.stat().st_size}
            for p in files_of(folder)
        },
    }
    if journal is not None and journal.records:
        last = journal.records[-1]
        content["migration"] = folder.parent.name
        content["who"] = last.who
        content["params_digest"] = journal.state.params_digest
        content["journal"] = {"seq": last.seq, "hash": last.hash}
        content["shared"] = {
            str(p.relative_to(folder.parent)): file_digest(p) for p in shared_files(folder.parent)
        }
    content["cluster_uid"] = _cluster_uid(journal)
    # A file's name need not be text; its odd bytes are escaped as JSON does and read back as they were.
    raw = (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode(
        errors="backslashreplace"
    )
    atomic_write(folder / MANIFEST, raw)
    return hashlib.sha256(raw).hexdigest()


def read_manifest(folder: Path, name: str = MANIFEST) -> dict[str, Any] | None:
    """Return the manifest of *folder*; None when there is none or it is not JSON."""
    if not is_file(folder / name):
        return None
    try:
        found = parse_json((folder / name).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _keep(folder: Path, digest: str) -> dict[str, Any]:
    """Keep the manifest with this *digest* under a name of its own; return the files it lists."""
    if not digest:
        return {}
    path = folder / MANIFEST
    raw = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(raw).hexdigest() != digest:
        return {}  # lost or changed, which the audit says; or kept already by a seal that died on its way
    number = sum(1 for p in folder.iterdir() if KEPT.fullmatch(p.name)) + 1
    atomic_write(folder / f"manifest-{number}.json", raw)
    return dict(parse_json(raw)["files"])


def _cluster_uid(journal: Journal | None) -> str:
    for record in reversed(journal.records if journal is not None else ()):
        if record.data.get("cluster_uid"):
            return str(record.data["cluster_uid"])
    return ""


_MEASURED = {
    "cluster version": "kubernetes",
    "APISIX version": "apisix",
    "kubectl": "kubectl",
    "istioctl": "istioctl",
}
"""Checks of the preflight that tell a version, and whose."""


def _systems(migration: Path, journal: Journal | None) -> dict[str, str]:
    """Return the versions of the systems at work, as the newest preflight and install had them.

    Nothing is asked: a seal waits for no cluster, and a run that is sealed late would get later versions.
    """
    found: dict[str, str] = {}
    for record in journal.records if journal is not None else ():
        if record.kind == "preflight.done":
            found |= _measured(migration / record.run / "checks.json")
        elif record.kind == "install.done" and record.data.get("version"):
            found["istio"] = str(record.data["version"])
        elif record.kind == "uninstall.done":
            found.pop("istio", None)
    return found


def _measured(checks: Path) -> dict[str, str]:
    try:
        rows = [(_MEASURED[c["name"]], c) for c in parse_json(checks.read_bytes()) if c["name"] in _MEASURED]
        # What follows a comma compares it with others: "1.37, server 1.36".
        return {whose: str(check["measured"]).partition(",")[0] for whose, check in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # that the file is lost or changed is for the audit to say


@cache
def _versions() -> dict[str, str]:
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "executable": sys.executable,
    }
    try:
        found["gateshift"] = version("gateshift")
    except PackageNotFoundError:
        found["gateshift"] = "not installed"
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name:
            found[name.lower()] = distribution.version
    return dict(sorted(found.items()))


def _git(folder: Path) -> dict[str, Any]:
    """Return revision and cleanness of the clone around *folder*, or nothing outside of one."""
    root = next((p for p in folder.absolute().parents if (p / ".git").exists()), None)
    if root is None:
        return {}
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, env=quiet, check=False)
        return done.stdout.strip()

    try:
        return {
            "revision": git("rev-parse", "HEAD"),
            "changed": git("status", "--porcelain").splitlines()[:50],
        }
    except (OSError, subprocess.TimeoutExpired):
        return {}
