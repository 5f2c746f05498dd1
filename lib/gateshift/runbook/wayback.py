"""Files from which a change is taken back; they lie beside the executed notebook."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gateshift.archive.files import atomic_write

__all__ = ["write_json"]


def write_json(path: Path, value: Any) -> None:
    """Write at once or not at all: a way back that is half on the disk is none."""
    atomic_write(path, json.dumps(value, indent=1, default=str) + "\n")
