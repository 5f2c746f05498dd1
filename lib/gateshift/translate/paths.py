"""APISIX ``uri`` patterns as Envoy path rules, with the key by which APISIX orders them.

The table of forms is route-semantics section 2: text before the first ``*`` decides specificity; a ``*``
that stands alone in a segment and is not last matches across segments; a ``*`` inside a segment makes a
plain prefix and the rest is ignored; ``:name`` only means something to radixtree_uri_with_parameter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from gateshift.apisix.lua import byte_string
from gateshift.apisix.model import Router
from gateshift.apisix.radix import is_plain, make_entry
from gateshift.translate.regexes import Inexpressible, check_regex

__all__ = ["Pattern", "encode_path", "parse_pattern"]

_SAFE = "/:@!$&'()*+,;=-._~"
_NOT_SENT = re.compile(r"[^\x21-\x7e]|%")


def encode_path(text: str) -> str:
    """Percent-encode what a request line cannot hold, as Envoy sees it (``/café`` is ``/caf%C3%A9``).

    APISIX compares the decoded path, so a percent sign in a route is one that the client sent as ``%25``.
    """
    return quote(text, safe=_SAFE)


@dataclass(frozen=True, slots=True)
class Pattern:
    """One uri: *kind* and *text* are the Envoy rule, *literal* is what APISIX orders by."""

    source: str
    kind: Literal["exact", "prefix", "regex"]
    text: str
    literal: str
    warning: str = ""
    unusable: str = ""
    """Why Envoy cannot match the path; the rule then covers all of the literal text, and only refuses."""
    never: bool = False
    """No request matches the path in APISIX."""

    @property
    def is_exact(self) -> bool:
        """True when APISIX keeps the pattern in its table of exact paths."""
        return self.kind == "exact"

    @property
    def match(self) -> dict[str, dict[str, str]]:
        """The VirtualService ``uri`` rule; a pure catch-all is written as prefix ``/``."""
        return {"uri": {self.kind: self.text}}


def _regex(source: str, literal: str) -> str | None:
    """Write the library's regular expression of a path; None when every path with the prefix is taken.

    The library does not escape what stands between the wildcards: it is a regular expression there. The
    text before the first wildcard is compared literally as well, so it is escaped here.
    """
    items = source.split("/")
    while items and not items[-1]:
        items.pop()
    names, parts, seen = 0, [], 0
    for item in items:
        start, seen = seen, seen + len(item) + 1
        if item.startswith(":"):
            parts.append("[^/]+" if start >= len(literal) else re.escape(encode_path(item)))
            names += 1
        elif item.startswith("*"):
            parts.append(".*" if start >= len(literal) else re.escape(encode_path(item)))
            names += 1
        elif start > len(literal):
            parts.append(_NOT_SENT.sub(lambda found: f"(?:{quote(found[0], safe='')})", item))
        else:
            parts.append(re.escape(encode_path(item)))
    if not names:
        return None
    if names == 1 and items[-1].startswith("*") and not source.endswith("/"):
        return None
    return "/".join(parts) + ("/" if source.endswith("/") else "")


def parse_pattern(source: str, router: Router) -> Pattern:
    """Read one uri as *router* would."""
    at = source.find(":") if router is Router.URI_WITH_PARAMETER else -1
    if at < 0:
        at = source.find("*")
    if at < 0:
        warning = ""
        if re.search(r"/:\w", source):
            warning = f"{source}: this router takes ':' literally; radixtree_uri_with_parameter may be meant"
        return Pattern(source, "exact", encode_path(source), encode_path(source), warning)
    literal = source[:at]
    pattern = _regex(source, literal)
    entry = make_entry(byte_string(source), None, 0, parameters=router is Router.URI_WITH_PARAMETER)
    if entry.never and not entry.manual:
        return Pattern(
            source, "prefix", "", "", f"{source}: APISIX reads it as an invalid pattern", never=True
        )
    cut = len(literal) - len(literal.rpartition("/")[2])  # where the segment that holds the wildcard begins
    inside = pattern is not None and cut < len(literal)
    known_text = all(is_plain(one) for one in literal.split("/") if one[:1] not in ("*", ":"))
    if (pattern is None and entry.pattern is not None) or inside or (pattern and not known_text):
        reason = "APISIX reads its text as a regular expression; write it without the special characters"
        return Pattern(source, "prefix", encode_path(literal) or "/", encode_path(literal), unusable=reason)
    if pattern is not None:
        known = encode_path(literal)
        try:
            return Pattern(source, "regex", check_regex(pattern), known)
        except Inexpressible as reason:
            return Pattern(source, "prefix", known or "/", known, unusable=str(reason))
    warning = "" if source[at:] == "*" else f"{source}: APISIX ignores what follows the '*'"
    return Pattern(source, "prefix", encode_path(literal) or "/", encode_path(literal), warning)
