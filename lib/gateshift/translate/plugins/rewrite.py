"""proxy-rewrite: path, host and header changes before the request goes upstream."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from gateshift.translate.conditions import Inexpressible, check_regex
from gateshift.translate.plugins.envoy import lua
from gateshift.translate.plugins.lua import HTTP
from gateshift.translate.plugins.registry import Use, handles
from gateshift.translate.plugins.values import guard_credential, header_value, lua_values, template
from gateshift.translate.regexes import full_match, top_level

__all__ = ["path_condition", "regex_rewrite"]


def regex_rewrite(pattern: str, replacement: str) -> dict[str, str]:
    """Return the uriRegexRewrite that replaces only the first match, as ``ngx.re.sub`` does.

    Envoy replaces every match, so a pattern that is not bound to the start is wrapped in one that eats
    the whole path.
    """
    groups = re.compile(check_regex(pattern)).groups
    if pattern.startswith("^") and len(top_level(pattern)) == 1:
        return {"match": pattern, "rewrite": template(replacement, groups)}
    whole = _WHOLE.search(replacement) is not None  # then the match itself needs a group
    last = groups + whole + 2
    if last > 9:
        raise Inexpressible("the pattern has too many groups for Envoy's nine")
    return {
        "match": f"^(.*?)({'' if whole else '?:'}{pattern})(.*)$",
        "rewrite": rf"\1{template(replacement, groups, shift=1 + whole)}\{last}",
    }


_WHOLE = re.compile(r"\$(?:0+(?!\d)|\{0+\})")


def path_condition(pattern: str) -> dict[str, Any]:
    """Return the condition under which *pattern* is found in the path."""
    # `?` cannot stand in the path: nothing in the pattern may reach over it into the query string.
    return {"headers": {":path": {"regex": rf"(?:{full_match(pattern, excluded='?')})(?:\?.*)?"}}}


def _headers(use: Use, raw: Mapping[str, Any]) -> None:
    structured = any(isinstance(raw.get(key), Mapping | list) for key in ("set", "add", "remove"))
    groups: Mapping[str, Any] = raw if structured else {"set": raw}
    for operation in ("set", "add"):
        values = groups.get(operation)
        for name, value in (values if isinstance(values, Mapping) else {}).items():
            if operation == "set" and value == "":
                use.draft.remove_header("request", str(name).lower())
            elif str(name).lower() == "host":
                use.draft.http.setdefault("rewrite", {})["authority"] = str(value)
            elif guard_credential(use, str(name), value):
                use.draft.headers("request", operation)[str(name).lower()] = header_value(use, value)
    for name in groups.get("remove") or ():
        use.draft.remove_header("request", str(name).lower())
    use.exact("headers", target="VirtualService http[].headers.request")


_OF_THE_PATH = re.compile(r"\$\{?(?:uri|request_uri)\b")
_SENT = "/!$&'()*+,;=:@[]"
"""What APISIX (nginx's ngx_escape_uri) leaves as it is in the new path, beside what no URL encodes."""


_HELD = r"""
-- A question mark of a variable's value begins no query; APISIX takes care of the first one alone.
local function held(value) return (value:gsub("%?", "%%3F", 1)) end
"""
_LUA = r"""
local function escaped(text, set)
  return (text:gsub(set, function(c) return string.format("%%%02X", c:byte()) end))
end
function envoy_on_request(handle)
  local headers = handle:headers()
  local path = target(handle, headers).path
  if path then
    local own = path:find("?", 1, true)
    local query = (headers:get(":path") or ""):match("%?(.*)$") or ""
    local head = escaped(own and path:sub(1, own - 1) or path, "[^A-Za-z0-9_.~/!$&'()*+,;=:@%[%]-]")
    path = head .. (own and escaped(path:sub(own), "[%z\1-\31\127]") or "")
    if query ~= "" then path = path .. (own and "&" or "?") .. query end
    headers:replace(":path", path)
  end
  if METHOD then headers:replace(":method", METHOD) end
end
"""


def _by_lua(use: Use) -> None:
    """Change the method, or set a path with variables or a query, which a VirtualService cannot."""
    method, uri = use.config.get("method"), str(use.config.get("uri") or "")
    computed = "$" in uri or "?" in uri
    if not method and not computed:
        return
    path = lua_values({"path": uri} if computed else {}, wrap="held")
    code = f"local function target(handle, headers) return {path} end\n"
    lua(use, {"METHOD": str(method) if method else None}, HTTP, _HELD, code, _LUA)
    use.exact("method", target="EnvoyFilter lua")
    if _OF_THE_PATH.search(uri):
        note = "Envoy has resolved dots in the path, and merges slashes only beside a guarded route"
        use.approximate("uri", target="EnvoyFilter lua", note=note)
    elif computed:
        use.exact("uri", target="EnvoyFilter lua")


@handles("proxy-rewrite")
def proxy_rewrite(use: Use) -> None:
    """Convert path, host and headers; the method, and paths with variables, by Lua."""
    config, draft = use.config, use.draft
    if isinstance(config.get("headers"), Mapping):
        _headers(use, config["headers"])
    rewrite = draft.http.setdefault("rewrite", {})
    if config.get("host"):
        if "$" in str(config["host"]):
            raise Inexpressible("a host with variables cannot be set by a VirtualService")
        rewrite["authority"] = str(config["host"])
        use.exact("host", target="VirtualService http[].rewrite.authority")
    target = "VirtualService http[].rewrite.uriRegexRewrite"
    encoded = "Envoy rewrites the path as sent, APISIX the decoded one"
    if config.get("uri"):
        uri = str(config["uri"])
        if "$" not in uri and "?" not in uri:
            rewrite["uriRegexRewrite"] = {"match": "^/.*$", "rewrite": quote(uri, safe=_SENT)}
            use.exact("uri", target=target)
        use.ignored("regex_uri", note="uri wins over regex_uri")
    elif config.get("regex_uri"):
        pairs = list(config["regex_uri"])
        if any("?" in str(one) for one in pairs[1::2]):
            # Envoy rewrites the path alone and puts the request's own query behind it with another `?`.
            raise Inexpressible("a replacement with a query string cannot be joined with the request's own")
        rules = [regex_rewrite(str(pairs[i]), str(pairs[i + 1])) for i in range(0, len(pairs) - 1, 2)]
        if len(rules) == 1:
            rewrite["uriRegexRewrite"] = rules[0]
        else:
            use.vary(
                [
                    ([path_condition(str(pairs[2 * position]))], {"rewrite": {"uriRegexRewrite": rule}})
                    for position, rule in enumerate(rules)
                ]
            )
        use.approximate("regex_uri", target=target, note=encoded)
    elif not config.get("use_real_request_uri_unsafe"):
        # `upstream_uri = ctx.var.uri`, encoded again, whatever else the plugin was put there for.
        use.job.warn(
            "routes with proxy-rewrite and no path of its own: APISIX decodes the path and encodes it anew "
            "before it goes to the backend (%2F becomes /); Envoy leaves %2F as it came"
        )
    if not rewrite:
        del draft.http["rewrite"]
    _by_lua(use)
    if config.get("use_real_request_uri_unsafe"):
        use.approximate("use_real_request_uri_unsafe", note="Envoy always forwards the normalised path")
    use.ignored("use_real_request_uri_unsafe", note="off")
    use.ignored("scheme", note="the upstream's scheme decides")
