"""What gateshift says to people, in their language: one catalogue, every sentence in each language.

``tell("gate.refused", digest=...)`` gives the sentence in the language in use: that of the params
(``lang``), else of ``GATESHIFT_LANG``, else English. Records, digests and archived data are not translated.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Final

import yaml

__all__ = ["LANGUAGES", "catalogue", "known", "language", "tell", "use"]

LANGUAGES: Final = ("en", "zh")

_chosen: list[str] = []


@cache
def catalogue() -> Mapping[str, Mapping[str, str]]:
    """Return every message: key to language to text with ``{names}`` to fill in."""
    text = (files(__package__) / "messages.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: Mapping[str, Mapping[str, str]] = yaml.load(text, Loader=loader)  # noqa: S506 - a safe loader
    return found


def use(lang: str) -> None:
    """Speak *lang* from now on in this process; an empty text returns to the environment's choice."""
    _chosen[:] = [lang] if lang else []


def language() -> str:
    """Return the language in use: ``en`` or ``zh``."""
    wanted = _chosen[0] if _chosen else os.environ.get("GATESHIFT_LANG", "")
    short = wanted.replace("-", "_").partition("_")[0].lower()
    return short if short in LANGUAGES else "en"


def known(key: str) -> bool:
    """True when the catalogue has *key*."""
    return key in catalogue()


def tell(key: str, /, *, lang: str | None = None, **values: object) -> str:
    """Return message *key* with *values* filled in; KeyError for a key or a value that is missing."""
    return catalogue()[key][lang or language()].format(**values)
