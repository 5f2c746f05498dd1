"""serverless functions: a few idioms are recognised statement by statement, everything else blocks.

What counts is that nothing is guessed: a function is read by a grammar of constants, loops over a table of
names, and calls whose effect is known. One token outside of it, and the whole route waits for a person.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateshift.translate.conditions import Inexpressible
from gateshift.translate.job import Guard
from gateshift.translate.plugins.envoy import lua
from gateshift.translate.plugins.registry import Use, handles
from gateshift.translate.plugins.values import guard_credential

_TOKEN = re.compile(
    r"""\s+ | --\[\[.*?\]\] | --[^\n]* |
    (?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*') | (?P<number>\d+) |
    (?P<name>[A-Za-z_]\w*) | (?P<sign>[(){}\[\],;=.])""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "'": "'", "\\": "\\"}
_STATUS = {
    "HTTP_OK": 200,
    "HTTP_CREATED": 201,
    "HTTP_NO_CONTENT": 204,
    "HTTP_BAD_REQUEST": 400,
    "HTTP_UNAUTHORIZED": 401,
    "HTTP_FORBIDDEN": 403,
    "HTTP_NOT_FOUND": 404,
    "HTTP_NOT_ALLOWED": 405,
    "HTTP_TOO_MANY_REQUESTS": 429,
    "HTTP_INTERNAL_SERVER_ERROR": 500,
    "HTTP_SERVICE_UNAVAILABLE": 503,
}
_MODULES = {"apisix.core": "core", "ngx": "ngx"}
_LOGS = ("ngx.log", "core.log.")


class _Unknown(Exception):  # noqa: N818 - a verdict about one function, caught below
    """The function does something that is not recognised; says what."""


@dataclass(slots=True)
class _Effect:
    """What a function does: header changes in their order, then perhaps an answer."""

    request: list[tuple[str, str | None]] = field(default_factory=list)
    response: list[tuple[str, str | None]] = field(default_factory=list)
    said: str | None = None
    status: int | None = None
    answer: tuple[int, str | None] | None = None


@dataclass(frozen=True, slots=True)
class _Path:
    """A name with its fields, such as ``ngx.req.set_header``."""

    text: str


def _tokens(source: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(source):
        match = _TOKEN.match(source, at)
        if match is None:
            raise _Unknown(f"it has the character {source[at]!r}")
        at = match.end()
        if match.lastgroup:
            found.append((match.lastgroup, match[0]))
    return found


def _unquoted(token: str) -> str:
    def one(found: re.Match[str]) -> str:
        if found[1] not in _ESCAPES:
            raise _Unknown(f"it has the escape {found[0]!r}")
        return _ESCAPES[found[1]]

    return re.sub(r"\\(.)", one, token[1:-1], flags=re.DOTALL)


class _Reader:
    """Reads one function's source; :attr:`effect` is what a call of it does."""

    def __init__(self, source: str, phase: str) -> None:
        self._tokens = _tokens(source)
        self._at = 0
        self._looping = False
        self._phase = phase
        self._known: dict[str, Any] = {"ngx": _Path("ngx"), "nil": None}
        self.effect = _Effect()
        while self._peek() == "local":
            self._local()
        self._take("return", "function", "(")
        for name in ("conf", "ctx"):
            if self._peek() != ")":
                self._known[self._name()] = _Path(name)
                if self._peek() == ",":
                    self._take(",")
        self._take(")")
        self._block()
        self._take("end")
        if self._at != len(self._tokens):
            raise _Unknown("something follows the function")

    def _peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at][1] if at < len(self._tokens) else ""

    def _shown(self) -> str:
        """Name the next token; a text may be a secret and is not repeated."""
        token = self._peek()
        return "a text" if token[:1] in ("'", '"') else token or "an end"

    def _take(self, *wanted: str) -> None:
        for one in wanted:
            if self._peek() != one:
                raise _Unknown(f"it has {self._shown()} where {one} was expected")
            self._at += 1

    def _name(self) -> str:
        kind, text = self._tokens[self._at] if self._at < len(self._tokens) else ("", "")
        if kind != "name":
            raise _Unknown(f"it has {self._shown()} where a name was expected")
        self._at += 1
        return text

    def _local(self) -> None:
        self._take("local")
        name = self._name()
        self._take("=")
        self._known[name] = self._value()

    def _value(self) -> Any:
        kind, text = self._tokens[self._at] if self._at < len(self._tokens) else ("", "")
        if kind == "text":
            self._at += 1
            return _unquoted(text)
        if kind == "number":
            self._at += 1
            return int(text)
        if text == "{":
            return self._table()
        if text == "require":
            self._take("require")
            name = self._arguments()[0] if self._peek() == "(" else self._value()
            if name not in _MODULES:
                raise _Unknown(f"it needs {name}")
            return _Path(_MODULES[name])
        path = self._path()
        if isinstance(path, _Path) and path.text.startswith("ngx.HTTP_"):
            status = _STATUS.get(path.text.removeprefix("ngx."))
            if status is None:
                raise _Unknown(f"it has {path.text}")
            return status
        return path

    def _table(self) -> list[str]:
        self._take("{")
        found = []
        while self._peek() != "}":
            one = self._value()
            if not isinstance(one, str):
                raise _Unknown("its table holds more than texts")
            found.append(one)
            if self._peek() in (",", ";"):
                self._at += 1
        self._take("}")
        return found

    def _path(self) -> Any:
        name = self._name()
        if name not in self._known:
            raise _Unknown(f"it uses {name}")
        value = self._known[name]
        while self._peek() in (".", "["):
            if not isinstance(value, _Path):
                raise _Unknown(f"it looks into {name}")
            if self._peek() == ".":
                self._take(".")
                value = _Path(f"{value.text}.{self._name()}")
            else:
                self._take("[")
                key = self._value()
                self._take("]")
                if not isinstance(key, str):
                    raise _Unknown("it looks up a field that is no text")
                value = _Path(f"{value.text}.{key}")
        return value

    def _arguments(self) -> list[Any]:
        self._take("(")
        found = []
        while self._peek() != ")":
            found.append(self._value())
            if self._peek() == ",":
                self._take(",")
        self._take(")")
        return found

    def _block(self) -> None:
        while self._peek() not in ("end", ""):
            if self._peek() == ";":
                self._at += 1
            elif self._peek() == "local":
                self._local()
            elif self._peek() == "for":
                self._loop()
            elif self._peek() == "return":
                self._return()
            else:
                self._statement()

    def _loop(self) -> None:
        self._take("for", "_", ",")
        name = self._name()
        self._take("in", "ipairs")
        (table,) = self._arguments()
        if not isinstance(table, list):
            raise _Unknown("it loops over something else than a table of texts")
        self._take("do")
        if self._looping:
            raise _Unknown("it has a loop in a loop")
        self._looping = True
        start = self._at
        if not table:
            raise _Unknown("it loops over nothing")
        for one in table:
            self._at = start
            self._known[name] = one
            self._block()
            if self.effect.answer is not None or self.effect.said is not None:
                raise _Unknown("it answers inside a loop")
        self._take("end")
        self._looping = False

    def _return(self) -> None:
        self._take("return")
        if self._looping:
            raise _Unknown("it returns out of a loop")
        if self._peek() in ("end", ";", ""):
            return
        start = self._at
        values = [self._value()]
        if self._peek() == "(":
            self._at = start
            self._statement()
            return
        if self._peek() == ",":
            self._take(",")
            values.append(self._value())
        self._exit(*values)

    def _statement(self) -> None:
        path = self._path()
        if not isinstance(path, _Path):
            raise _Unknown("it has a statement that is no call")
        if self._peek() == "=":
            self._take("=")
            self._assign(path.text, self._value())
        elif path.text.startswith(_LOGS):
            self._skip()
        else:
            self._call(path.text, self._arguments())

    def _skip(self) -> None:
        """Pass by the arguments of a log line: names and texts in one pair of brackets."""
        self._take("(")
        while self._peek() != ")":
            if self._peek() in ("(", "{", ""):
                raise _Unknown("it logs what it computes")
            self._at += 1
        self._take(")")

    def _assign(self, path: str, value: Any) -> None:
        if path == "ngx.status" and isinstance(value, int):
            self.effect.status = value
        elif path.startswith("ngx.header.") and self._phase == "header_filter":
            name = path.removeprefix("ngx.header.").replace("_", "-")
            self._change(self.effect.response, name, value)
        else:
            raise _Unknown(f"it sets {path}")

    def _change(self, where: list[tuple[str, str | None]], name: Any, value: Any) -> None:
        if not isinstance(name, str) or not (value is None or isinstance(value, str | int)):
            raise _Unknown("it sets a header to what is no constant")
        if name.lower() in ("host", "connection", "content-length", "transfer-encoding"):
            raise _Unknown(f"it changes the header {name}")
        where.append((name.lower(), None if value is None else str(value)))

    def _call(self, path: str, given: list[Any]) -> None:
        given = [one for one in given if one != _Path("ctx")]
        if path in ("ngx.req.set_header", "core.request.set_header") and len(given) == 2:
            self._request(*given)
        elif path == "ngx.req.clear_header" and len(given) == 1:
            self._request(given[0], None)
        elif path in ("ngx.say", "ngx.print") and len(given) == 1 and isinstance(given[0], str):
            self.effect.said = (self.effect.said or "") + given[0] + ("\n" if path == "ngx.say" else "")
        elif path in ("ngx.exit", "core.response.exit") and given:
            self._exit(*given)
        else:
            raise _Unknown(f"it calls {path}")

    def _request(self, name: Any, value: Any) -> None:
        if self._phase == "header_filter":
            raise _Unknown("it changes a request that was already sent")
        self._change(self.effect.request, name, value)

    def _exit(self, status: Any, body: Any = None) -> None:
        if not isinstance(status, int) or not 200 <= status < 600 or not isinstance(body, str | None):
            raise _Unknown("it ends with what is no status and text")
        if self._phase == "header_filter":
            raise _Unknown("it ends a request that was already answered")
        if self.effect.answer is None:
            # What was said first has sent the status that stood then.
            if self.effect.said is not None:
                self.effect.answer = (self.effect.status or 200, self.effect.said)
            else:
                self.effect.answer = (status, body)


_CODE = r"""
function envoy_on_request(handle)
  local headers = handle:headers()
  for _, one in ipairs(CHANGES) do
    if one[2] then headers:replace(one[1], one[2]) else headers:remove(one[1]) end
  end
end
"""


def _effects(use: Use) -> Iterator[_Effect]:
    phase = str(use.config.get("phase", "access"))
    if phase not in ("rewrite", "access", "header_filter"):
        raise Inexpressible(f"its functions run in the phase {phase}")
    functions = use.config.get("functions")
    if not isinstance(functions, list | tuple) or not functions:
        raise Inexpressible("it names no functions, which APISIX would refuse")
    for number, source in enumerate(functions, start=1):
        try:
            effect = _Reader(str(source), phase).effect
        except _Unknown as reason:
            raise Inexpressible(f"function {number} is Lua that is not recognised: {reason}") from None
        if effect.said is not None and effect.answer is None:
            raise Inexpressible(f"function {number} answers and goes on")
        yield effect


@handles("serverless-pre-function", "serverless-post-function")
def serverless(use: Use) -> None:
    """Headers set or removed and fixed answers are recognised; any other Lua blocks."""
    changes: list[tuple[str, str | None]] = []
    for effect in list(_effects(use)):
        changes += effect.request
        for name, value in effect.response:
            if value is None:
                use.draft.remove_header("response", name)
            else:
                use.draft.headers("response", "set")[name] = value.replace("%", "%%")
        if effect.answer is not None:
            _answer(use, *effect.answer)
            return
    if changes:
        if not all(value is None or guard_credential(use, name, value) for name, value in changes):
            return
        lua(use, {"CHANGES": [[n] if v is None else [n, v] for n, v in changes]}, _CODE)
    where = "EnvoyFilter lua, at the plugin's place in the order"
    use.exact("phase", "functions", target=where if changes else "VirtualService http[].headers.response")


def _answer(use: Use, status: int, body: str | None) -> None:
    answer: dict[str, Any] = {"status": status}
    if body:
        answer["body"] = {"string": body}
    late = use.config.get("phase", "access") == "access"
    http: Mapping[str, Any] = {"directResponse": answer}
    use.draft.guards.append(Guard("function", use.priority, ({},), http, late))
    use.exact("phase", target="VirtualService http[].directResponse")
    target = "VirtualService http[].directResponse"
    if body:
        use.exact("functions", target=target)
    else:
        use.approximate(
            "functions", target=target, note="the answer has no body, nginx has a page of its own"
        )
