"""Take secrets out of everything that is written: known values, their encodings, and telling shapes.

A value counts as known when a param of a secret type has it, or when a mapping holds it under a telling
name (``admin_key``, ``token``, ``Authorization``). Shapes are found without being known, see
:mod:`gateshift.archive.shapes`.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from gateshift.archive.shapes import MASK, telling, without_shapes

__all__ = ["MASK", "Redactor", "secret_values", "secrets_in", "telling"]

_REFERENCE = re.compile(r"\$\{env:([^}]*)\}")

_PERCENT = re.compile(r"%[0-9A-F]{2}")

_SHORTEST = 4
"""Shorter known values are not searched for: replacing every "a" would destroy the text and hide nothing."""

_NUMBER = 6
"""Digits of a number that may be a secret: a shorter one is a count or a time, whatever its name says."""


def secret_values(value: Any, *, name: str = "") -> set[str]:
    """Collect the texts that stand under telling names anywhere inside plain *value*."""
    if isinstance(value, Mapping):
        found: set[str] = set()
        for key, item in value.items():
            found |= secret_values(item, name=str(key))
        return found
    if isinstance(value, (list, tuple)):
        return {s for item in value for s in secret_values(item, name=name)}
    if isinstance(value, str) and telling(name) and not value.startswith("${"):
        return {value}
    return set()


def secrets_in(parameters: Any, *, name: str = "") -> set[str]:
    """Collect secret values from a notebook's parameters, ``${env:NAME}`` references followed."""
    found = secret_values(parameters, name=name)
    if isinstance(parameters, Mapping):
        for key, value in parameters.items():
            found |= secrets_in(value, name=str(key))
    elif isinstance(parameters, (list, tuple)):
        for value in parameters:
            found |= secrets_in(value, name=name)
    elif isinstance(parameters, str):
        for reference in _REFERENCE.findall(parameters):
            variable, _, default = reference.partition(":-")  # as params read it: empty counts as unset
            if telling(name) or telling(variable):
                found.add(os.environ.get(variable) or default)
    elif type(parameters) is int and telling(name) and len(str(parameters)) >= _NUMBER:
        found.add(str(parameters))  # papermill's -p makes a number of a password that has digits only
    return found - {""}


def _encodings(value: str) -> set[str]:
    """Return the ways *value* may be written: plain, escaped, percent- and base64-encoded, per line."""
    forms = _spellings(value)
    if value.strip() != value:
        # From a file, with its line end: whoever sends or prints it leaves that out.
        forms |= _spellings(value.strip())
    # A key in several lines may be printed line by line, indented or quoted.
    if "\n" in value:
        forms |= {line.strip() for line in value.splitlines() if len(line.strip()) >= 16}
    return {f for f in forms if len(f) >= _SHORTEST}


def _spellings(value: str) -> set[str]:
    # What a file or an environment holds need not be text: such bytes are surrogates here.
    raw = value.encode(errors="surrogateescape")
    forms = {value, repr(value)[1:-1], json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    forms |= {ascii(value)[1:-1], repr(raw)[2:-1], value.encode("unicode_escape").decode()}
    forms |= {unicodedata.normalize(form, value) for form in ("NFC", "NFD")}
    # In a page, by whoever escapes there: Python and pandas, with or without the quotes, Jinja, a browser.
    page = html.escape(value, quote=False)
    forms |= {page, html.escape(value), page.replace('"', "&quot;"), page.replace('"', "&#34;")}
    forms |= {form.replace("'", "&#39;") for form in set(forms) if "&" in form}
    forms |= {value.replace("'", "'\"'\"'"), value.replace("'", "'\\''")}  # for a shell
    for safe in ("", "/", "!*'()", "!#$%&'()*+,/:;=?@[]~"):
        percent = quote(raw, safe=safe)
        for form in (percent, percent.replace("%20", "+")):
            forms |= {form, _PERCENT.sub(lambda found: found[0].lower(), form)}
    encoded = {base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode()}
    forms |= encoded | {form.rstrip("=") for form in encoded} | {raw.hex(), raw.hex().upper()}
    # Inside a longer encoded text the value starts at one of three bit positions; its middle is always
    # the same characters. Only long middles are searched for: short ones would hit by chance.
    for shift in range(3):
        middle = raw[(3 - shift) % 3 :]
        middle = middle[: len(middle) // 3 * 3]
        if len(middle) >= 6:
            forms |= {base64.b64encode(middle).decode(), base64.urlsafe_b64encode(middle).decode()}
    return forms


class Redactor:
    """Replaces secrets in texts and in plain JSON values. Immutable apart from :meth:`learn`."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._known: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self.learn(secrets)

    def learn(self, secrets: Iterable[str]) -> None:
        """Add known secret values; values shorter than four characters are ignored."""
        new = {s for s in secrets if s and len(s) >= _SHORTEST} - self._known
        if not new:
            return
        self._known |= new
        forms = {form for secret in self._known for form in _encodings(secret)}
        # Longest first, so that a value never leaves the tail of a longer one standing.
        ordered = sorted(forms, key=lambda f: (-len(f), f))
        self._pattern = re.compile("|".join(re.escape(f) for f in ordered))

    @property
    def count(self) -> int:
        """How many values are known."""
        return len(self._known)

    def text(self, text: str) -> str:
        """Return *text* without secrets."""
        if self._pattern is not None:
            text = self._pattern.sub(MASK, text)
        return without_shapes(text, self._knows)

    def _knows(self, text: str) -> bool:
        return self._pattern is not None and self._pattern.search(text) is not None

    def value(self, value: Any, *, name: str = "") -> Any:
        """Return plain JSON *value* without secrets: texts cleaned, values under telling names masked."""
        if isinstance(value, str):
            if name and telling(name) and value and not value.startswith("${"):
                return MASK
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                (self.text(k) if isinstance(k, str) else k): self.value(
                    v, name=k if isinstance(k, str) else ""
                )
                for k, v in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.value(item, name=name) for item in value]
        if type(value) is int and str(value) in self._known and telling(name):
            return MASK
        return value
