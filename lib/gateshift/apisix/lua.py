"""The few pieces of Lua that decide routing: number reading, number writing and byte strings.

Lua strings are bytes. A str that holds only ASCII is already equal to its bytes; any other is kept as the
Latin-1 reading of its UTF-8 bytes, so that lengths, prefixes and regular expressions count bytes as nginx,
lua-resty-radixtree and PCRE do.
"""

from __future__ import annotations

import math
import re

__all__ = ["byte_string", "from_byte_string", "lower", "to_number", "to_text"]

_LOWER = {code: code + 32 for code in range(65, 91)}
_SPACE = " \t\n\v\f\r"
_DECIMAL = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_HEX = re.compile(
    r"([+-]?)0[xX]((?:[0-9a-fA-F]+(?:\.[0-9a-fA-F]*)?|\.[0-9a-fA-F]+)(?:[pP][+-]?\d+)?)", re.ASCII
)
_BINARY = re.compile(r"([+-]?)0[bB]([01]+)", re.ASCII)
_WORD = re.compile(r"[+-]?(?:inf|infinity|nan)", re.IGNORECASE | re.ASCII)
_MAY_BE_NUMBER = frozenset("0123456789+-." + "iInN" + _SPACE)


def byte_string(text: str) -> str:
    """Return *text* with one character per UTF-8 byte (half a character, which JSON can write, has three)."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass").decode("latin-1")


def from_byte_string(text: str) -> str:
    """Undo :func:`byte_string`, for messages."""
    return text if text.isascii() else text.encode("latin-1").decode("utf-8", "replace")


def lower(text: str) -> str:
    """Lower ASCII letters only, as ``string.lower`` does in nginx's C locale."""
    return text.lower() if text.isascii() else text.translate(_LOWER)


def to_number(value: object) -> float | None:  # noqa: PLR0911 - one return a notation
    """Read *value* as LuaJIT's ``tonumber`` does, or return None when it would return nil.

    Lua's numbers are doubles: above 2^53, integers that differ may be the same number.
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return _double(value)
    if isinstance(value, float):
        return value
    if not isinstance(value, str) or not value or value[0] not in _MAY_BE_NUMBER:
        return None
    text = value.strip(_SPACE)
    if _DECIMAL.fullmatch(text):
        return float(text)
    found = _HEX.fullmatch(text)
    if found:
        try:
            return float.fromhex(f"{found[1]}0x{found[2]}")
        except OverflowError:
            return -math.inf if found[1] == "-" else math.inf
    found = _BINARY.fullmatch(text)
    if found:
        return _double(int(found[2], 2)) * (-1.0 if found[1] == "-" else 1.0)
    return float(text) if _WORD.fullmatch(text) else None


def _double(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def to_text(value: object) -> str:  # noqa: PLR0911 - one return a type
    """Write *value* as Lua's ``tostring`` does for what JSON and YAML can hold."""
    if isinstance(value, str):
        return byte_string(value)
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        number = _double(value)
        if math.isnan(number):
            return "nan"
        if math.isinf(number):
            return "inf" if number > 0 else "-inf"
        return f"{number:.14g}"
    return "table: 0x0"
