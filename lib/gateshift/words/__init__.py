"""What gateshift says to people, in their language: one catalogue, every sentence in each language.

``tell("gate.refused", digest=...)`` gives the sentence in the language in use: that of the params
(``lang``), else of ``GATESHIFT_LANG``, else English. Records, digests and archived data are not translated.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Final

import yaml

__all__ = ["LANGUAGES", "catalogue", "decision_words", "gloss", "known", "language", "tell", "term", "use"]

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
    """Return message *key* with *values* filled in; KeyError for a key or a value that is missing.

    A message about one thing (``count=1``) is said by ``key.one`` where the catalogue has that.
    """
    if values.get("count") == 1 and known(f"{key}.one"):
        key = f"{key}.one"
    return catalogue()[key][lang or language()].format(**values)


_RECORDED = "reason."
_NAMES: Final = ("term.", "standing.", "decision.", "phase.", "title.")
"""Single words and names, said in another language only where they stand alone."""
_NAME = re.compile(r"\{(\w+)\}")
_KEYS: Final = {"file", "field", "key", "path"}
"""Names of values that are written as a person wrote them: a key called ``cluster`` is no word."""
_VALUE: Final = {
    **dict.fromkeys(("stage", "count", "all", "percent"), r"[-+]?[\d.,]+"),
    # The reasons of another sentence: several may be joined.
    **dict.fromkeys(("reason", "reasons", "why"), r".+"),
    **dict.fromkeys(("field", "is_", "path", "status"), r"\S+"),
    # Names to choose from: "one of" also begins sentences.
    "choices": r"[\w-]+(?:, [\w-]+)*",
}
"""How a value of this name looks; any other is a text without a semicolon, which joins reasons."""


@cache
def _whole(prefixes: tuple[str, ...]) -> Mapping[str, str]:
    """Return the key of each text below *prefixes* that has no value in it, by its English form."""
    return {
        texts["en"]: key
        for key, texts in catalogue().items()
        if key.startswith(prefixes) and not _NAME.search(texts["en"])
    }


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Return the sentences that are recorded in English, each with the pattern that finds its values.

    The longest sentences come first, so that a general one does not swallow what a special one says better.
    """
    found = [
        (key, re.compile(_pattern(texts["en"])))
        for key, texts in catalogue().items()
        if key.startswith(_RECORDED) and _NAME.search(texts["en"])
    ]
    return tuple(sorted(found, key=lambda one: -len(one[1].pattern)))


def _pattern(sentence: str) -> str:
    parts, seen = [], set()
    for piece in re.split(r"(\{\w+\})", sentence):
        name = _NAME.fullmatch(piece)
        if name is None:
            parts.append(re.escape(piece))
        elif name[1] in seen:  # the same value once more
            parts.append(f"(?P={name[1]})")
        else:
            seen.add(name[1])
            parts.append(f"(?P<{name[1]}>{_VALUE.get(name[1], '[^;]+?')})")
    return "".join(parts)


def decision_words(decision: str) -> str:
    """Return a verdict's decision in the language in use, however a record writes it."""
    return tell(f"decision.{decision.lower()}")


def term(text: str) -> str:
    """Return a single word or name of ours (a column's head, a check, a phase) in the language in use."""
    if language() == "en":
        return text
    key = _whole(_NAMES).get(text)
    return text if key is None else tell(key)


def gloss(text: str) -> str:
    """Return a recorded English *text*, reasons joined by semicolons, in the language in use.

    What the catalogue does not know stays in English: a reason is never left out.
    """
    if language() == "en":
        return text
    if "\n" in text:
        return "\n".join(gloss(line) for line in text.split("\n"))
    pieces, said, found = text.split("; "), [], False
    while pieces:
        for count in range(len(pieces), 0, -1):
            told = _glossed("; ".join(pieces[:count]))
            if told is not None or count == 1:
                found = found or told is not None
                said.append(pieces[0] if told is None else told)
                del pieces[:count]
                break
    return "；".join(said) if found else text


def _glossed(sentence: str) -> str | None:
    if key := _whole((_RECORDED,)).get(sentence):
        return tell(key)
    for key, pattern in _patterns():
        if found := pattern.fullmatch(sentence):
            # A value may be a sentence or a name itself: the reason of a rollback, the standing of a check.
            values = found.groupdict().items()
            return tell(key, **{name: v if name in _KEYS else gloss(term(v)) for name, v in values})
    return None
