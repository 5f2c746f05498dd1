"""papermill's door to the archive: ``gateshift://outputs/m/run/book.ipynb`` is a local file, written whole.

Registered under the entry point ``papermill.io``; with ``--engine gateshift`` any local output is written so.
"""

from __future__ import annotations

import json
from pathlib import Path

from gateshift.archive.files import atomic_write
from gateshift.archive.redact import Redactor, secrets_in

__all__ = ["SCHEME", "ArchiveIO", "handler", "local_path"]

SCHEME = "gateshift://"


def local_path(path: str) -> Path:
    """Return the file behind *path*, with or without the scheme."""
    return Path(path.removeprefix(SCHEME)).absolute()


class ArchiveIO:
    """Has the four methods papermill asks of a handler. What is written is without secrets."""

    def read(self, path: str) -> str:
        """Return the file's text."""
        return local_path(path).read_text(encoding="utf-8")

    def write(self, buf: str, path: str) -> None:
        """Replace the file at once; the notebook's own parameters say which values are secret."""
        target = local_path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(target, _clean(buf))

    def listdir(self, path: str) -> list[str]:
        """Return the paths in a folder, with the scheme."""
        return [f"{SCHEME}{entry}" for entry in sorted(local_path(path).iterdir())]

    def pretty_path(self, path: str) -> str:
        """Return *path* for a log."""
        return path


def _clean(text: str) -> str:
    try:
        book = json.loads(text)
        parameters = book.get("metadata", {}).get("papermill", {}).get("parameters", {})
    except (ValueError, AttributeError):
        return Redactor().text(text)
    clean = Redactor(secrets_in(parameters)).value(book)
    return text if clean == book else json.dumps(clean, indent=1, ensure_ascii=False) + "\n"


handler = ArchiveIO()
"""What the entry point names: papermill registers an object, not a class."""
