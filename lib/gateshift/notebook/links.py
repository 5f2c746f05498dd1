"""Names of notebooks in a text become links to them, wherever the text is shown.

By hand a notebook lies beside the one that links to it. An archived copy lies in its run's folder; its
links lead back to the clone's notebooks, and are left out when the archive is not inside the clone.
"""

from __future__ import annotations

import os
import re
from html import escape
from pathlib import Path

__all__ = ["linked", "place"]

_NAME = re.compile(
    r"\b(00_preflight|10_install|20_translate|30_apply|40_verify|50_canary|60_soak|70_cleanup"
    r"|80_rollback|90_troubleshoot|99_report)(?:\.ipynb)?\b"
)
_VERBS = re.compile(r"`?gateshift (rollback|diagnose|preflight|report)\b[^`;,.]*`?")
_OF_VERB = {
    "rollback": "80_rollback",
    "diagnose": "90_troubleshoot",
    "preflight": "00_preflight",
    "report": "99_report",
}
_base: list[str | None] = [""]


def place(notebooks: Path, copy_folder: Path | None) -> None:
    """Say where the *notebooks* are, and the folder of the archived copy when this run makes one."""
    if copy_folder is None:
        _base[0] = ""
    elif notebooks.parent in copy_folder.parents:
        _base[0] = os.path.relpath(notebooks, copy_folder).replace(os.sep, "/") + "/"
    else:
        _base[0] = None


def linked(text: str) -> str:
    """Return *text* as HTML: escaped, its names of notebooks as links, commands followed by theirs."""
    if _base[0] is None:
        return _breakable(escape(text))
    named = set(_NAME.findall(text))

    def anchor(name: str) -> str:
        return f'<a href="{_base[0]}{name}.ipynb">{name}</a>'

    shown = _NAME.sub(lambda found: anchor(found[1]), escape(text, quote=False))
    more = [_OF_VERB[verb] for verb in _VERBS.findall(text) if _OF_VERB[verb] not in named]
    return _breakable(shown) + "".join(f" → {anchor(name)}" for name in dict.fromkeys(more))


_TAG_OR_LONG = re.compile(r"<[^>]*>|[^\s<>&]{25,}")
_PART = re.compile(r"(?<=[/,=|@])(?=[^\s/|])|(?<=\w{3}[.:])(?=\w)")


def _breakable(page: str) -> str:
    """Let a line end inside of long paths and names: one that may not pushes a table out of the window.

    A ``wbr`` shows nothing and is not copied: a command stays what it is.
    """
    return _TAG_OR_LONG.sub(lambda m: m[0] if m[0][0] == "<" else _PART.sub("<wbr>", m[0]), page)
