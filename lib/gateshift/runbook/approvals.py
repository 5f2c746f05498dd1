"""Approvals given outside the notebook: one small file a digest, read by the gate that waits."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["read_approval", "write_approval"]


def _path(folder: Path, digest: str) -> Path:
    return folder / "approvals" / f"{digest}.json"


def write_approval(folder: Path, digest: str, who: str) -> None:
    """Leave the approval of *digest* by *who* in the migration's *folder*, atomically."""
    path = _path(folder, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps({"digest": digest, "who": who, "at": datetime.now(UTC).isoformat()}))
    partial.replace(path)


def read_approval(folder: Path, digest: str) -> str | None:
    """Return who approved *digest*, or None while nobody has."""
    try:
        return str(json.loads(_path(folder, digest).read_text())["who"])
    except FileNotFoundError:
        return None
