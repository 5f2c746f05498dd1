"""PCRE patterns as Python's ``re`` on byte strings (see :mod:`gateshift.apisix.lua`).

``ngx.re`` compiles without UTF mode: one character is one byte and classes are ASCII. Most syntax is the
same in both; what differs is rewritten here, and what Python cannot express raises :class:`Untranslatable`
instead of matching something else.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache

__all__ = ["POSIX", "InvalidPattern", "Untranslatable", "compile_pattern"]


class Untranslatable(ValueError):  # noqa: N818 - says what is wrong with the pattern, never leaves the room
    """Valid in PCRE, but Python's ``re`` has no equal."""


class InvalidPattern(ValueError):  # noqa: N818 - as above
    """Not a pattern for PCRE either: nginx logs an error and treats it as no match."""


POSIX = {
    "alpha": "a-zA-Z", "digit": "0-9", "alnum": "a-zA-Z0-9", "upper": "A-Z", "lower": "a-z",
    "space": " \\t\\n\\r\\f\\v", "blank": " \\t", "punct": "!-/:-@\\[-`{-~", "xdigit": "0-9A-Fa-f",
    "word": "\\w", "cntrl": "\\x00-\\x1f\\x7f", "print": "\\x20-\\x7e", "graph": "\\x21-\\x7e",
}  # fmt: skip
_ESCAPES = {
    "h": "[ \\t\\xa0]", "H": "[^ \\t\\xa0]", "R": "(?>\\r\\n|[\\n-\\r\\x85])",
    "N": "[^\\n]", "e": "\\x1b", "V": "[^\\n-\\r\\x85]", "v": "[\\n-\\r\\x85]",
}  # fmt: skip
_CLASS_ESCAPES = {"h": " \\t\\xa0", "v": "\\n-\\r\\x85", "e": "\\x1b", "b": "\\x08"}
_IMPOSSIBLE = frozenset("GKXCEpPgkoc")
_REFUSED = frozenset("LUlu")  # Perl's case changes: an error in PCRE
_INLINE = re.compile(r"\(\?([imsxJU]*)(?:-([imsxJU]*))?([:)])")
_SETS = frozenset({"\\" + c for c in "dDsSwW"} | {*POSIX.values(), " \\t\\xa0", "\\n-\\r\\x85"})
_SET_AHEAD = re.compile(r"\\[dDsSwWhv]|\[:\w+:\]")
_LAZY = re.compile(r"(?:[*+?]|\{\d+(?:,\d*)?\})\?")
_QUANTIFIER = re.compile(r"\{(\d+)(,?)(\d*)\}")


@lru_cache(maxsize=4096)
def compile_pattern(pattern: str, *, ignore_case: bool = False) -> re.Pattern[str]:
    """Compile *pattern* (a byte string). ``ignore_case`` is the ``i`` option of ``ngx.re``."""
    flags = re.ASCII | (re.IGNORECASE if ignore_case else 0)
    text = _Translator(pattern).run()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of "[[" and "--" in classes; the meaning is kept
            return re.compile(text, flags)
    except re.error as error:
        if "look-behind" in str(error) or "group" in str(error):
            raise Untranslatable(f"{pattern}: {error}") from None
        raise InvalidPattern(f"{pattern}: {error}") from None
    except (OverflowError, RecursionError) as error:
        raise InvalidPattern(f"{pattern}: {error}") from None


class _Translator:
    """One pass over the pattern, copying what both dialects share."""

    def __init__(self, pattern: str) -> None:
        self.text = pattern
        self.at = 0
        self.out: list[str] = []
        self.open: list[str] = []  # what closes each open group
        self.tail = ""

    def run(self) -> str:
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == "\\":
                self._escape()
            elif char == "[":
                self._class()
            elif char == "(":
                self._group()
            elif char == ")":
                self._close()
            elif char == "{":
                self._brace()
            elif char == "$":
                self._assertion("(?=\\n?\\Z)", 1)
            elif char == "^":
                self._assertion("^", 1)
            else:
                self._emit(char, 1)
        if self.open:
            raise InvalidPattern(f"{self.text}: missing )")
        return "".join(self.out) + self.tail

    def _assertion(self, text: str, consumed: int) -> None:
        self._emit(text, consumed)
        rest = self.text[self.at : self.at + 1]
        if rest and (rest in "*+?" or _QUANTIFIER.match(self.text, self.at)):
            raise InvalidPattern(f"{self.text}: quantifier does not follow a repeatable item")

    def _emit(self, text: str, consumed: int) -> None:
        self.out.append(text)
        self.at += consumed

    def _escape(self) -> None:
        if self.at + 1 >= len(self.text):
            raise InvalidPattern(f"{self.text}: \\ at end of pattern")
        char = self.text[self.at + 1]
        if char in "AbBzZ":
            # Python's \\B fails on empty text, PCRE's does not
            text = {"B": "(?!\\b)", "z": "\\Z", "Z": "(?=\\n?\\Z)"}.get(char, "\\" + char)
            self._assertion(text, 2)
            return
        self._refuse(char)
        if char == "Q":
            end = self.text.find("\\E", self.at + 2)
            literal = self.text[self.at + 2 : end if end >= 0 else len(self.text)]
            self.out.append(re.escape(literal))
            self.at = len(self.text) if end < 0 else end + 2
        elif char == "E":
            self.at += 2
        elif char == "x":
            self._hex()
        elif char in _ESCAPES:
            if char == "R" and _LAZY.match(self.text, self.at + 2):
                # PCRE's \R is atomic, and inside a lazy repetition the two engines give up differently.
                raise Untranslatable(f"{self.text}: \\R repeated lazily")
            self._emit(_ESCAPES[char], 2)
        elif char == "0":
            found = re.compile(r"[0-7]{1,3}").match(self.text, self.at + 1)
            digits = found[0] if found else "0"
            self._emit(f"\\x{int(digits, 8) & 0xFF:02x}", 1 + len(digits))
        elif char.isalpha() and char.isascii() and char not in "AbBdDsSwWnrtfa":
            raise InvalidPattern(f"{self.text}: unrecognized character follows \\")
        elif char.isdigit() and self.text[self.at + 2 : self.at + 3].isdigit():
            raise Untranslatable(f"{self.text}: a back reference or octal of several digits")
        elif char.isalnum() and char.isascii():
            self._emit("\\" + char, 2)
        else:
            self._emit(re.escape(char), 2)

    def _refuse(self, char: str) -> None:
        if char in _IMPOSSIBLE or self.text.startswith("N{", self.at + 1):
            raise Untranslatable(f"{self.text}: \\{char}")
        if char in _REFUSED:
            raise InvalidPattern(f"{self.text}: PCRE does not support \\{char}")

    def _hex(self) -> None:
        braced = re.compile(r"\{([0-9a-fA-F]{1,2})\}").match(self.text, self.at + 2)
        if braced:
            self._emit(f"\\x{braced[1]:0>2}", 2 + len(braced[0]))
            return
        found = re.compile(r"[0-9a-fA-F]{0,2}").match(self.text, self.at + 2)
        digits = found[0] if found else ""
        if not digits and self.text.startswith("{", self.at + 2):
            raise Untranslatable(f"{self.text}: \\x{{...}} above one byte")
        self._emit(f"\\x{digits:0>2}", 2 + len(digits))

    def _class(self) -> None:
        out = ["["]
        at = self.at + 1
        if self.text.startswith("^", at):
            out.append("^")
            at += 1
        first = True
        while True:
            if at >= len(self.text):
                raise InvalidPattern(f"{self.text}: missing terminating ]")
            char = self.text[at]
            if char == "]" and not first:
                break
            first = False
            if char == "[" and self.text.startswith(("[:", "[.", "[="), at):
                found = re.compile(r"\[:(\^?)(\w+):\]").match(self.text, at)
                if found:
                    if found[2] not in POSIX or found[1]:
                        raise Untranslatable(f"{self.text}: {found[0]}")
                    out.append(POSIX[found[2]])
                    at = found.end()
                    continue
            if char == "\\":
                piece, at = self._class_escape(at)
                out.append(piece)
                continue
            if char == "-" and self._beside_set(out[-1], at + 1):
                raise Untranslatable(
                    f"{self.text}: a hyphen beside a set, which PCRE 8 takes and PCRE2 refuses"
                )
            out.append("\\" + char if char in "[]^&~|" else char)
            at += 1
        out.append("]")
        self.out.append("".join(out))
        self.at = at + 1

    def _beside_set(self, before: str, at: int) -> bool:
        """True when a hyphen stands between a set and something else, or before a set."""
        if self.text.startswith("]", at) or before in ("[", "^"):
            return False
        return before in _SETS or _SET_AHEAD.match(self.text, at) is not None

    def _class_escape(self, at: int) -> tuple[str, int]:
        if at + 1 >= len(self.text):
            raise InvalidPattern(f"{self.text}: \\ at end of pattern")
        char = self.text[at + 1]
        if char == "x":
            found = re.compile(r"\{?([0-9a-fA-F]{1,2})\}?").match(self.text, at + 2)
            if not found:
                return "\\x00", at + 2
            return f"\\x{found[1]:0>2}", found.end()
        octal = re.compile(r"[0-7]{1,3}").match(self.text, at + 1)
        if octal:
            return f"\\x{int(octal[0], 8) & 0xFF:02x}", octal.end()
        if char in _CLASS_ESCAPES:
            return _CLASS_ESCAPES[char], at + 2
        if char in "HVRNXQEpPBCGKLcgk":
            raise Untranslatable(f"{self.text}: \\{char} in a class")
        if char in "dDsSwWnrtfa":
            return "\\" + char, at + 2
        if char.isalpha() and char.isascii():
            raise InvalidPattern(f"{self.text}: unrecognized character follows \\")
        return re.escape(char) if char.isascii() else char, at + 2

    def _group(self) -> None:
        rest = self.text[self.at : self.at + 4]
        if rest.startswith("(*"):
            raise Untranslatable(f"{self.text}: verb (*")
        if not rest.startswith("(?"):
            self.open.append(")")
            self._emit("(", 1)
            return
        inline = _INLINE.match(self.text, self.at)
        if inline and (inline[1] or inline[2] or inline[3] == ":"):
            self._inline(inline)
            return
        named = re.compile(r"\(\?(?:P?<|')([A-Za-z_]\w*)[>']").match(self.text, self.at)
        if named:
            self.open.append(")")
            self._emit(f"(?P<{named[1]}>", len(named[0]))
            return
        for prefix in ("(?=", "(?!", "(?<=", "(?<!", "(?>"):
            if self.text.startswith(prefix, self.at):
                self.open.append(")")
                self._emit(prefix, len(prefix))
                return
        raise Untranslatable(f"{self.text}: {rest}")

    def _inline(self, inline: re.Match[str]) -> None:
        on, off = inline[1], inline[2] or ""
        if set(on + off) & set("JUxm"):
            raise Untranslatable(f"{self.text}: {inline[0]}")
        if inline[3] == ")" and self.out and "|" in self.text[self.at :]:
            # The option reaches over alternatives, which a Python group would divide differently.
            raise Untranslatable(f"{self.text}: {inline[0]} before an alternative")
        self._emit(f"(?{on}-{off}:" if off else f"(?{on}:", len(inline[0]))
        if inline[3] == ":":
            self.open.append(")")
        elif self.open:
            self.open[-1] += ")"  # the option holds to the end of the enclosing group
        else:
            self.tail += ")"

    def _close(self) -> None:
        if not self.open:
            raise InvalidPattern(f"{self.text}: unmatched )")
        self._emit(self.open.pop(), 1)

    def _brace(self) -> None:
        found = _QUANTIFIER.match(self.text, self.at)
        # PCRE (before 10.43) reads {,n} and any other brace as text; Python reads {,n} as a quantifier.
        self._emit(found[0] if found else "\\{", len(found[0]) if found else 1)
