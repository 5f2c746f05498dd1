"""response-rewrite: headers by the VirtualService; status, body and conditions by Lua."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gateshift.translate.conditions import Inexpressible
from gateshift.translate.plugins.envoy import lua, lua_text, quoted
from gateshift.translate.plugins.registry import Use, handles
from gateshift.translate.plugins.values import header_value

_LUA = r"""
local function plain_replace(text, find, put, every)
  local out, at = {}, 1
  while true do
    local from, to = text:find(find, at, true)
    if not from then break end
    out[#out + 1] = text:sub(at, from - 1) .. put
    at = to + 1
    if not every then break end
  end
  return table.concat(out) .. text:sub(at)
end
function envoy_on_response(handle)
  local headers = handle:headers()
  local status = tonumber(headers:get(":status"))
  if not applies(status) then return end
  if BODY or FILTERS then
    local buffered = handle:body(true)
    headers = handle:headers()  -- what was taken before waiting for the body is no longer valid
    local text = BODY
    if not text then
      text = buffered:getBytes(0, buffered:length())
      for _, one in ipairs(FILTERS) do text = plain_replace(text, one.find, one.put, one.every) end
    end
    headers:remove("content-encoding")
    headers:replace("content-length", tostring(#text))
    buffered:setBytes(text)
  end
  if STATUS then headers:replace(":status", tostring(STATUS)) end
  for _, one in ipairs(ADD) do headers:add(one[1], one[2]) end
  for _, one in ipairs(SET) do headers:replace(one[1], one[2]) end
  for _, name in ipairs(REMOVE) do headers:remove(name) end
end
"""
_COMPARISONS = {"==": "==", "~=": "~=", ">": ">", ">=": ">=", "<": "<", "<=": "<="}


def added(raw: object) -> list[tuple[str, str]]:
    """Read headers in either form: a mapping, or lines ``Name: value``."""
    if isinstance(raw, Mapping):
        return [(str(k), str(v)) for k, v in raw.items()]
    pairs = []
    for line in raw if isinstance(raw, list) else ():
        name, _, value = str(line).partition(":")
        pairs.append((name.strip(), value.strip()))
    return pairs


def _groups(raw: object) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        return {}
    structured = any(isinstance(raw.get(key), Mapping | list) for key in ("set", "add", "remove"))
    return raw if structured else {"set": raw}


def _test(raw: Any) -> str:
    """Write ``vars`` about the answer's status as a Lua expression."""
    if not isinstance(raw, Sequence) or isinstance(raw, str) or not raw:
        raise Inexpressible("vars is not a list of conditions")
    if isinstance(raw[0], list):
        return "(" + " and ".join(_test(one) for one in raw) + ")"
    head = str(raw[0])
    if head in ("AND", "OR", "!AND", "!OR"):
        joined = f" {head.removeprefix('!').lower()} ".join(_test(one) for one in raw[1:])
        return f"(not ({joined}))" if head.startswith("!") else f"({joined})"
    if head not in ("status", "upstream_status"):
        raise Inexpressible(f"a condition on {head} cannot be asked when the answer comes")
    negate = len(raw) == 4 and raw[1] == "!"
    operator, value = (raw[2], raw[3]) if negate else (raw[1], raw[2])
    if operator in _COMPARISONS:
        text = f"status {_COMPARISONS[operator]} {int(value)}"
    elif operator == "in":
        text = "(" + " or ".join(f"status == {int(one)}" for one in value) + ")"
    else:
        raise Inexpressible(f"the operator {operator!r} on the status has no equivalent")
    return f"not ({text})" if negate else text


def _filters(raw: Any) -> list[dict[str, Any]] | None:
    found = []
    for one in raw or ():
        pattern = str(one["regex"])
        if re.search(r"[\\^$.|?*+()\[\]{}]", pattern) or "i" in str(one.get("options", "jo")):
            raise Inexpressible("a body filter by a regular expression: Envoy's Lua has none")
        every = one.get("scope", "once") == "global"
        found.append({"find": pattern, "put": str(one["replace"]), "every": every})
    return found or None


def _body(config: Mapping[str, Any]) -> str | None:
    text = config.get("body")
    if text is None:
        return None
    if not config.get("body_base64"):
        return quoted(str(text))
    try:
        raw = base64.b64decode(str(text), validate=True)
    except binascii.Error as error:
        raise ValueError("body is not valid base64") from error
    return '"' + "".join(f"\\{byte:03d}" for byte in raw) + '"'


@handles("response-rewrite")
def response_rewrite(use: Use) -> None:
    """Change headers of the answer; status, body and conditions on the status by Lua."""
    config = use.config
    groups = _groups(config.get("headers"))
    if any(config.get(key) for key in ("status_code", "body", "filters", "vars")):
        _by_lua(use, groups)
        return
    for name, value in added(groups.get("set")):
        if value == "":
            use.draft.remove_header("response", name.lower())
        else:
            use.draft.headers("response", "set")[name.lower()] = header_value(use, value)
    for name, value in added(groups.get("add")):
        use.draft.headers("response", "add")[name.lower()] = header_value(use, value)
    for name in groups.get("remove") or ():
        use.draft.remove_header("response", str(name).lower())
    note = "not set on answers that Envoy makes before it has chosen a route"
    use.approximate("headers", target="VirtualService http[].headers.response", note=note)
    use.ignored("body_base64", note="off")


def _plain(pairs: list[tuple[str, str]]) -> list[list[str]]:
    for name, value in pairs:
        if "$" in value:
            raise Inexpressible(f"header {name} has a variable beside a changed body or status")
    return [[name.lower(), value] for name, value in pairs]


def _by_lua(use: Use, groups: Mapping[str, Any]) -> None:
    config = use.config
    wanted = _plain(added(groups.get("set")))
    removed = [str(one).lower() for one in groups.get("remove") or ()]
    settings = {
        "STATUS": int(config["status_code"]) if config.get("status_code") else None,
        "FILTERS": _filters(config.get("filters")),
        "ADD": _plain(added(groups.get("add"))),
        "SET": [one for one in wanted if one[1]],
        "REMOVE": [*removed, *(name for name, value in wanted if not value)],
    }
    condition = _test(config["vars"]) if config.get("vars") else "true"
    body = f"local BODY = {_body(config) or lua_text(None)}\n"
    lua(use, settings, body, f"local function applies(status) return {condition} end\n", _LUA)
    keys = ("status_code", "body", "body_base64", "filters", "vars", "headers")
    use.exact(*keys, target="EnvoyFilter lua")
    if config.get("body") is not None or config.get("filters"):
        note = "the backend's answer is collected first: it cannot be streamed"
        use.approximate("body", "filters", target="EnvoyFilter lua", note=note)
