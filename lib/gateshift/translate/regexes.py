"""PCRE searches as RE2 full matches, which is how Envoy reads every regular expression.

``ngx.re`` searches anywhere in a value; Envoy compares the whole of one. So each top-level alternative loses
its anchors, and where it has none it is widened. *excluded* names characters that the value cannot hold but
its surroundings can (``?`` after a path, ``;`` after a cookie): no wildcard may run over them.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from gateshift.apisix.pcre import POSIX

__all__ = ["Inexpressible", "check_regex", "full_match", "top_level"]

_NOT_RE2 = re.compile(r"\(\?(?:[=!>]|<[=!]|R|\d|P[=>]|\()|\\[1-9ZGKRX]|[*+?}]\+|\\g\{|\\k[<{']")
_LEADING_FLAGS = re.compile(r"\(\?([is]+)\)")
_GROUP = re.compile(r"\(\?(?:([is]*(?:-[is]+)?):|P?<([A-Za-z_]\w*)>)")
_REPEAT = re.compile(r"\{(\d+)(?:,(\d*))?\}")
_MAX_REPEAT = 1000
_NEGATED = {"D": "\\d", "W": "\\w", "S": "\\s", "N": "\\n"}
_PLAIN_ESCAPES = frozenset("dwsbBnrtf")
_ANCHOR_ESCAPES = {"A": "^", "z": "$"}


class Inexpressible(Exception):  # noqa: N818 - a verdict about a condition, caught by the caller
    """The condition has no equivalent in a VirtualService match; the message says why."""


def check_regex(pattern: str) -> str:
    """Return *pattern* if RE2 takes it; PCRE's look-around, back references and possessives do not exist."""
    if _NOT_RE2.search(pattern):
        raise Inexpressible("the pattern uses what Envoy's RE2 does not have (look-around, back reference)")
    try:
        re.compile(pattern)
    except re.error as error:
        raise Inexpressible(f"the pattern is not a valid regular expression: {error}") from error
    return pattern


def full_match(pattern: str, *, ignore_case: bool = False, excluded: str = "", encoded: bool = False) -> str:
    """Write a PCRE search as an RE2 full match. Raises Inexpressible.

    With *encoded*, text that a request line holds percent-encoded is looked for in that form.
    """
    if _NOT_RE2.search(re.sub(r"\\Z", "$", pattern)):
        raise Inexpressible("the pattern uses what Envoy's RE2 does not have (look-around, back reference)")
    flags = "i" if ignore_case else ""
    leading = _LEADING_FLAGS.match(pattern)
    if leading:
        flags += leading[1]
        pattern = pattern[leading.end() :]
    if "s" in flags and excluded:
        flags = flags.replace("s", "")  # no newline can stand in what is matched here
    flags = "".join(sorted(set(flags)))
    reader = _Reader(pattern, excluded, encoded)
    text = "|".join(reader.alternatives(0, len(pattern)))
    return f"(?{flags}:{text})" if flags else text


def top_level(pattern: str) -> list[str]:
    """Return the top-level alternatives of a pattern. Raises Inexpressible when it is none."""
    return [pattern[first:last] for first, last in _Reader(pattern, "", False).cuts(0, len(pattern))]


class _Reader:
    """Cuts a pattern into top-level alternatives and rewrites each."""

    def __init__(self, pattern: str, excluded: str, encoded: bool) -> None:
        self._pattern, self._excluded, self._encoded = pattern, excluded, encoded
        self._any = f"[^{re.escape(excluded)}]*" if excluded else ".*"

    def alternatives(self, start: int, end: int) -> list[str]:
        """Return the alternatives between two positions, each as a full match."""
        found = []
        for first, last in self.cuts(start, end):
            inner = self._only_group(first, last)
            if inner is not None:
                found += self.alternatives(*inner)
                continue
            body, begins, ends = self._body(first, last)
            found.append(("" if begins else self._any) + body + ("" if ends else self._any))
        return found

    def cuts(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return where each alternative between two positions begins and ends."""
        cuts, depth, at = [start], 0, start
        while at < end:
            size = self._atom_size(at, end)
            char = self._pattern[at]
            if size == 1:
                depth += (char == "(") - (char == ")")
                if char == "|" and depth == 0:
                    cuts.append(at + 1)
            at += size
        if depth:
            raise Inexpressible("the pattern is not a valid regular expression: unbalanced parenthesis")
        return [(a, b - 1) for a, b in zip(cuts, [*cuts[1:], end + 1], strict=True)]

    def _atom_size(self, at: int, end: int) -> int:
        """Return the length of an escape, a quoted text or a class; anything else is one character."""
        text = self._pattern
        if text.startswith("\\Q", at):
            close = text.find("\\E", at + 2)
            return (end if close < 0 else close + 2) - at
        if text[at] == "\\":
            braced = re.compile(r"\\x\{[0-9a-fA-F]+\}|\\x[0-9a-fA-F]{1,2}").match(text, at)
            return len(braced[0]) if braced else 2
        if text[at] != "[":
            return 1
        close = at + 1 + text.startswith("^", at + 1)
        close += text.startswith("]", close)
        while close < end and text[close] != "]":
            if text.startswith("[:", close):
                close = text.find(":]", close) + 1
            close += 2 if text[close] == "\\" else 1
        if close >= end:
            raise Inexpressible("the pattern is not a valid regular expression: a class does not end")
        return close + 1 - at

    def _only_group(self, start: int, end: int) -> tuple[int, int] | None:
        """Return the inside of an alternative that is nothing but one group holding anchors."""
        text = self._pattern
        if end - start < 2 or text[start] != "(" or text[end - 1] != ")" or text[end - 2] == "\\":
            return None
        head = _GROUP.match(text, start)
        if head and head[1]:
            return None
        depth, at = 0, start
        while at < end:
            size = self._atom_size(at, end)
            if size == 1:
                depth += (text[at] == "(") - (text[at] == ")")
                if depth == 0 and at < end - 1:
                    return None
            at += size
        inside = (head.end() if head else start + 1, end - 1)
        return inside if re.search(r"[$^]|\\[AzZ]", text[inside[0] : inside[1]]) else None

    def _body(self, start: int, end: int) -> tuple[str, bool, bool]:
        out: list[str] = []
        begins = ends = False
        at = start
        while at < end:
            size = self._atom_size(at, end)
            atom = self._pattern[at : at + size]
            anchor = _ANCHOR_ESCAPES.get(atom[1:], "$" if atom == "\\Z" else "") if atom[0] == "\\" else atom
            if anchor == "^" and at == start:
                begins = True
            elif anchor == "$" and at + size == end:
                ends = True
            elif anchor in ("^", "$"):
                raise Inexpressible("an anchor inside the pattern has no equivalent in a full match")
            else:
                group = _GROUP.match(self._pattern, at) if atom == "(" else None
                repeat = _REPEAT.match(self._pattern, at) if atom == "{" else None
                if group:
                    size = len(group[0])
                    out.append(f"(?P<{group[2]}>" if group[2] else group[0])
                elif repeat:
                    size = len(repeat[0])
                    out.append(self._repeat(repeat))
                else:
                    out.append(self._atom(atom, at))
            at += size
        return "".join(out), begins, ends

    def _repeat(self, found: re.Match[str]) -> str:
        if max(int(found[1]), int(found[2] or 0)) > _MAX_REPEAT:
            raise Inexpressible(f"RE2 repeats at most {_MAX_REPEAT} times")
        return found[0]

    def _atom(self, atom: str, at: int) -> str:
        if atom.startswith("\\Q"):
            return "".join(self._literal(c) for c in atom[2:].removesuffix("\\E"))
        if atom[0] == "\\":
            return self._escape(atom)
        if atom[0] == "[" and len(atom) > 1:
            return self._class(atom)
        if atom == "." and self._excluded:
            return f"[^{re.escape(self._excluded)}]"
        if atom == "(" and self._pattern.startswith("(?", at):
            raise Inexpressible("the pattern changes its flags in the middle, or uses a group of PCRE alone")
        return atom if atom in "()|*+?." else self._literal(atom)

    def _literal(self, char: str) -> str:
        if char in self._excluded:
            raise Inexpressible(f"the pattern looks for {char!r}, which ends the value it is compared with")
        if self._encoded and not (char.isascii() and char.isprintable() and char not in ' "<>\\^`{|}'):
            return f"(?:{quote(char)})"
        if char.isalnum() or char in "-_/ ,;:=@%&~'\"<>!#":
            return char
        return re.escape(char) if char.isascii() else char

    def _escape(self, atom: str) -> str:
        if atom.startswith("\\x"):
            code = int(atom[2:].strip("{}") or "0", 16)
            if code > 0x7F:
                raise Inexpressible("the pattern names a byte that is no ASCII character")
            return self._literal(chr(code))
        if len(atom) < 2:
            raise Inexpressible("the pattern is not a valid regular expression: it ends in a backslash")
        char = atom[1]
        if char in _NEGATED and (self._excluded or char == "N"):
            return f"[^{_NEGATED[char]}{re.escape(self._excluded)}]"
        if char in "DWS" or char in _PLAIN_ESCAPES:
            return atom
        if char == "h":
            return "[ \\t]"
        if char == "E":
            return ""
        if char.isalnum():
            raise Inexpressible(f"RE2 has no \\{char}")
        return self._literal(char)

    def _class(self, atom: str) -> str:
        negated = atom.startswith("[^")
        inside = atom[2 if negated else 1 : -1]
        if re.search(r"\\[^dDwWsSnrtfx\W_]", inside) or (
            self._encoded and not negated and not inside.isascii()
        ):
            raise Inexpressible("a character class of the pattern has no equivalent")
        if (
            not negated
            and self._excluded
            and (set(self._excluded) & set(inside) or re.search(r"\\[DWS]", inside))
        ):
            raise Inexpressible("a character class of the pattern reaches beyond the value")

        def posix(found: re.Match[str]) -> str:
            if found[1] not in POSIX:
                raise Inexpressible(f"RE2 has no class {found[0]}")
            return POSIX[found[1]]

        inside = re.sub(r"\[:(\^?\w+):\]", posix, inside)
        inside = inside.replace("\\_", "_")
        if inside.startswith("]"):
            inside = "\\" + inside
        inside = re.sub(r"(?<!\\)\[", r"\\[", inside)
        return f"[{'^' if negated else ''}{inside}{re.escape(self._excluded) if negated else ''}]"
