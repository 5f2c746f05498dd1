"""What looks like a secret without being known as one: tokens, keys, headers, values under telling names.

Also inside of base64, as a Kubernetes Secret is printed: runs that decode to text are judged by that text.
What decodes to anything else (pictures, digests) is no text and stays.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator

__all__ = ["MASK", "telling", "without_shapes"]

MASK = "[redacted]"

_TELLING = re.compile(
    r"(^|[-_.])(password|passwd|passphrase|secret|token|credentials?|authorization|cookie|"
    r"(api|admin|access|private|signing|hmac|secret)[-_]?key|apikey|bearer)([-_.]|$)",
    re.IGNORECASE,
)
_HARMLESS = re.compile(
    r"(_file|_path|_name|_names|_url|_ref|_id|_count|_timeout|_secret_name)$", re.IGNORECASE
)

_SHAPES: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    # What a text must have before a pattern is tried: a picture of 200,000 characters costs 1 ms, not 60.
    # Words with capitals are looked for as they stand, the others in any case.
    (
        ("private key",),
        re.compile(r"-----BEGIN ([A-Z ]*)PRIVATE KEY-----.*?(-----END \1PRIVATE KEY-----|\Z)", re.DOTALL),
        f"-----BEGIN PRIVATE KEY----- {MASK}",
    ),
    # The same as a base64 value of a Kubernetes Secret: LS0tLS1CRUdJTiB is "-----BEGIN ".
    (
        ("LS0tLS1CRUdJTi",),
        re.compile(
            r"LS0tLS1CRUdJTi[A-Za-z0-9+/]{0,80}(?:UFJJVkFURSBLRVk|BSSVZBVEUgS0VZ|QUklWQVRFIEtFW)[A-Za-z0-9+/=]*"
        ),
        MASK,
    ),
    # A scheme that nobody listed, before what has a digit and so is no word of a sentence.
    (
        ("authorization",),
        re.compile(
            r"""(?i)((?:proxy-)?authorization["']?\s*[:=]\s*["']?[a-z][a-z0-9-]*[ \t]+)"""
            r"""(?=[^\s"',}\\]*\d)[^\s"',}\\]{8,}"""
        ),
        rf"\1{MASK}",
    ),
    (
        ("authorization",),
        re.compile(
            r"""(?i)((?:proxy-)?authorization["']?\s*[:=]\s*["']?)(?![a-z][a-z0-9-]*[ \t]+\[redacted)"""
            r"""((?:bearer|basic|token|digest)\s+)?(?!\[redacted)[^\s"',}\\]{4,}"""
        ),
        rf"\1\2{MASK}",
    ),
    (
        ("bearer",),
        re.compile(r"""(?i)\b(bearer\s+)(?!\[redacted|token\b)[A-Za-z0-9._~+/-]{12,}=*"""),
        rf"\1{MASK}",
    ),
    (
        ("api-key", "apikey", "x-auth-token", "cookie"),
        re.compile(
            r"""(?i)((?:x-api-key|apikey|x-auth-token|set-cookie|cookie)["']?\s*[:=]\s*["']?)(?!\[redacted)[^\s"',}\\]{4,}"""
        ),
        rf"\1{MASK}",
    ),
    (("AKIA", "ASIA"), re.compile(r"(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])"), MASK),
    (("://",), re.compile(r"(?i)(\b[a-z][a-z0-9+.-]{0,40}://[^\s/:@]*:)[^\s/@]+(@)"), rf"\1{MASK}\2"),
)

_DOTTED = re.compile(r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]*+)++")
"""Runs of base64url with dots between, each looked at once: what is logged may be crafted to be slow."""
_HEAD = re.compile(r"eyJ[A-Za-z0-9_-]{8}")

_PAIR_WORDS = ("password", "passwd", "passphrase", "secret", "token", "credential", "key")
_PAIR = re.compile(
    # From the telling word at the name's end on; what stands before it is looked at only then.
    r"""(?P<head>(?P<name>password|passwd|passphrase|secret|token|credentials?|key)"""
    r"""(?P<quote>\\*["'])?[ \t]*(?P<sep>[:=])[ \t]*(?P<open>\\*["'])?)"""
    r"""(?P<value>(?(open)[^"'\\\n]{4,}|[^\s"'`,;&<>(){}\[\]\\]{4,}))(?P<call>[(\[])?""",
    re.IGNORECASE,
)
_BEFORE = re.compile(r"[\w.-]*\Z")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_PASS = re.compile(r"pass(word|wd|phrase)", re.IGNORECASE)
_HARMLESS_VALUE = re.compile(
    r"(?i)none|null|true|false|[\d.]+(ms|s|m|h|d)?|\$.*|sha256:.*|\w+://.*|\[redacted.*"
)

_RUN = re.compile(
    r"[A-Za-z0-9+/_-]{24,}(?:(?<=[A-Za-z0-9+/_-]{60})(?:\\n|\r?\n)[ \t]*[A-Za-z0-9+/_-]+)*={0,2}"
)
_SPACE = re.compile(r"\s|\\n")
_PATH = re.compile(r"[+/]")
_URLSAFE = str.maketrans("-_", "+/")


def telling(name: str) -> bool:
    """Return whether a key called *name* holds a secret by convention."""
    return bool(_TELLING.search(name)) and not _HARMLESS.search(name)


def without_shapes(text: str, known: Callable[[str], bool] = lambda _: False) -> str:
    """Return *text* without what looks like a secret; every other character stays as it is.

    *known* tells of a text whether a secret that is known is in it: base64 in several lines has it in none.
    """
    return _plain(_RUN.sub(lambda found: _decoded(found, known), text))


def _plain(text: str) -> str:
    lowered = text.lower()
    if "." in text and "eyJ" in text:
        text = _DOTTED.sub(_token, text)
    for words, shape, replacement in _SHAPES:
        if any(word in (lowered if word.islower() else text) for word in words):
            text = shape.sub(replacement, text)
    # A separator with four characters behind it: base64 has one at its very end only.
    if (":" in text or "=" in text[:-4]) and any(word in lowered for word in _PAIR_WORDS):
        text = _PAIR.sub(_pair, text)
    return text


def _token(found: re.Match[str]) -> str:
    """Mask the tokens (JWT, JWE) in a dotted run; what stands before and behind them stays."""
    parts = found[0].split(".")
    at = 0
    while at < len(parts):
        head = _HEAD.search(parts[at])
        length = _token_length(parts[at + 1 : at + 5]) if head else 0
        if head and length:
            parts[at : at + length] = [parts[at][: head.start()] + MASK]
        at += 1
    return ".".join(parts)


def _token_length(rest: list[str]) -> int:
    """Return how many parts a token has whose header is followed by *rest*; 0 when it is none."""
    # Header.payload.signature; the payload of a JWT always begins with {" = eyJ.
    if len(rest) >= 2 and rest[0].startswith("eyJ") and len(rest[0]) >= 7:
        return 3
    # Header.key.vector.ciphertext.tag: an encrypted one, whose key may be empty.
    return 5 if len(rest) == 4 and all(rest[1:]) else 0


def _pair(found: re.Match[str]) -> str:
    """Mask the value of ``name=value`` or ``name: value`` when both look like it."""
    before = _BEFORE.search(found.string, max(0, found.start() - 60), found.start())
    name = _HUMP.sub("_", f"{before[0] if before else ''}{found['name']}")
    value = found["value"]
    if found["call"] or _HARMLESS_VALUE.fullmatch(value) or not telling(name):
        return found[0]
    quoted = bool(found["quote"] and found["open"])  # "name": "value" is data, not prose
    if _PASS.fullmatch(found["name"]):
        secret = quoted or (value.lower() != found["name"].lower() and (found["sep"] == "=" or _ends(found)))
    else:
        secret = _random(value) or (quoted and len(value.split()) == 1 and not value.isalpha())
    return f"{found['head']}{MASK}" if secret else found[0]


def _ends(found: re.Match[str]) -> bool:
    """Return whether the value is all there is behind its colon: a sentence goes on."""
    return found.string[found.end() : found.end() + 1] != " "


def _random(value: str) -> bool:
    """Return whether *value* is no word, no name of words and no number."""
    parts = re.split(r"[-_./:]", value)
    return (
        len(value) >= 8
        and " " not in value
        and any(c.isdigit() for c in value)
        and any(c.isalpha() for c in value)
        and (len(parts) == 1 or max(map(len, parts)) >= 12)
    )


def _decoded(found: re.Match[str], known: Callable[[str], bool]) -> str:
    """Mask a run of base64 whose text has the shape of a secret."""
    run = found[0]
    if "\n" in run or "\\n" in run:  # looked for first: most runs are one line, and some are pictures
        run = _SPACE.sub("", run)
    run = run.rstrip("=").translate(_URLSAFE)
    for text in _texts(run):
        if _plain(text) != text or known(text):
            return MASK
    return found[0]


def _texts(run: str) -> Iterator[str]:
    """Give the texts that *run* encodes: from its beginning, behind a name or path, from a token (eyJ) on."""
    places, at = [0, *(m.end() for m in _PATH.finditer(run, 0, 64))], run.find("ZXlK", 1)
    while at > 0 and len(places) < 40:
        places.append(at)
        at = run.find("ZXlK", at + 1)
    for place in places:
        # A picture shows at once that it is no text.
        if _text(run[place : place + 64]) and (text := _text(run[place:])):
            yield text


def _text(run: str) -> str:
    whole = run[: len(run) // 4 * 4]
    rest = run[len(whole) :]
    try:
        raw = base64.b64decode(whole + (rest + "=" * (4 - len(rest)) if len(rest) > 1 else ""))
    except ValueError:
        return ""
    text = raw.decode("utf-8", "ignore")
    # A character cut at the end is none that is missing in the middle.
    return text if len(text.encode()) >= len(raw) - 3 and "\0" not in text else ""
