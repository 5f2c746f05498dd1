"""What lies in a migration's folder: what is evidence, what is not, and in which place and form.

Evidence is what a hash of the journal covers. Beside it stand what the operator works on (``desk``), what
keeps others out (``lock``), what was told to people (``notifications.jsonl``), and the note in an unpacked
export (``HEAD.json``). Each is known by its place and its form only; anything else is a stranger.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gateshift.migration.identity import Process
from gateshift.plan import parse_json

__all__ = [
    "APPROVALS",
    "DESK",
    "HEAD_NOTE",
    "LOCK",
    "NOTIFICATIONS",
    "approval_of",
    "entries",
    "evidence",
    "executing",
    "head_note",
    "is_file",
    "is_folder",
    "lacking",
    "leftover",
    "misshapen",
]

APPROVALS, DESK, HEAD_NOTE, LOCK = "approvals", "desk", "HEAD.json", "lock"
NOTIFICATIONS = "notifications.jsonl"

_NO_EVIDENCE = {DESK, HEAD_NOTE, LOCK, NOTIFICATIONS}
_PARTIAL = re.compile(r"\..+\.\d+\.part|journal\.head\.part")
_HELD = {"who", "process", "nonce", "renewed", "expires"}
_TOLD = {"time", "key", "kind", "state", "text"}
_APPROVAL = re.compile(r"(?P<digest>[^-]+)(-[0-9a-f]{8}(-\d{8}T\d{12})?)?\.json")


def is_folder(path: Path) -> bool:
    """Return whether *path* is a folder itself, not a link to one."""
    return stat.S_ISDIR(path.lstat().st_mode)


def is_file(path: Path) -> bool:
    """Return whether *path* is a file itself: no link to bytes elsewhere, no pipe that waits."""
    return os.path.lexists(path) and stat.S_ISREG(path.lstat().st_mode)


def lacking(path: Path) -> str:
    """Say in words why *path* is no file itself: nothing is there, or something else."""
    return "is not a file" if os.path.lexists(path) else "is missing"


def entries(folder: Path) -> Iterator[Path]:
    """Give everything below *folder* that is not a folder: files, and links and pipes by their own names."""
    for path in sorted(folder.iterdir()):
        if is_folder(path):
            yield from entries(path)
        else:
            yield path


def leftover(path: Path) -> bool:
    """Return whether *path* is what a write leaves that was killed before it was whole."""
    return bool(_PARTIAL.fullmatch(path.name)) and stat.S_ISREG(path.lstat().st_mode)


def evidence(migration: Path) -> Iterator[Path]:
    """Give each file of *migration* that belongs into a copy of its archive."""
    for top in sorted(migration.iterdir()):
        if top.name not in _NO_EVIDENCE:
            found = entries(top) if is_folder(top) else [top]
            yield from (p for p in found if is_file(p) and not leftover(p))


def head_note(migration: str, head: str) -> bytes:
    """Return the only spelling of the note in an export: *migration*, and the hash of its newest record."""
    return (json.dumps({"migration": migration, "head": head}) + "\n").encode()


def executing(path: Path) -> bool:
    """Return whether *path* is an executed copy that its engine has not ended: at work, or dead."""
    if path.suffix != ".ipynb" or not is_file(path):
        return False
    try:
        mark = parse_json(path.read_bytes())["metadata"]["gateshift"]
        return mark["outcome"] == "running" and Process.parse(str(mark["engine"])) is not None
    except (ValueError, KeyError, TypeError):
        return False


def approval_of(path: Path) -> str:
    """Return the digest of the plan that the file *path* approves; empty when it is no approval."""
    named = _APPROVAL.fullmatch(path.name)
    try:
        given = parse_json(path.read_bytes())
        if (
            named
            and isinstance(given["who"], str)
            and given.get("digest", named["digest"]) == named["digest"]
        ):
            return named["digest"]
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return ""


def _is_lock(raw: bytes) -> bool:
    # Empty when its first holder died between making and filling it; cut when a machine did.
    found = parse_json(raw or b"{}")
    return isinstance(found, Mapping) and set(found) in (set(), _HELD)


def _is_told(raw: bytes) -> bool:
    return all(_is_message(line) for line in raw.decode().splitlines())


def _is_message(line: str) -> bool:
    try:
        found: Any = parse_json(line)
    except ValueError:
        return line.startswith('{"')  # torn by a death, or the next line written behind such a one
    return isinstance(found, Mapping) and set(found) >= _TOLD


_FORMS: Mapping[str, Callable[[bytes], bool]] = {LOCK: _is_lock, NOTIFICATIONS: _is_told}


def misshapen(path: Path) -> bool:
    """Return whether *path*, no evidence by its name and place, is something else by its form."""
    if path.name == DESK:
        return not is_folder(path)
    if not stat.S_ISREG(path.lstat().st_mode):
        return True
    try:
        return not _FORMS[path.name](path.read_bytes())
    except ValueError:
        return True
