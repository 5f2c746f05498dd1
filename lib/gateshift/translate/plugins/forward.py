"""forward-auth and opa: another service decides. Lua asks it as APISIX does, on its routes only.

Istio's CUSTOM policies would need a provider in MeshConfig, ask with the client's own path and method, take
200 alone as a yes, and (before 1.30) allow one provider for a whole gateway. Asking from Lua has none of it.
"""

from __future__ import annotations

from typing import Any

from gateshift.translate.conditions import Inexpressible
from gateshift.translate.plugins.envoy import cluster_of, lua
from gateshift.translate.plugins.lua import HTTP, JSON
from gateshift.translate.plugins.registry import Use, handles
from gateshift.translate.plugins.values import address_of, lua_values

_FORWARD = r"""
function envoy_on_request(handle)
  local headers = handle:headers()
  local asked = {
    ["x-forwarded-proto"] = headers:get("x-forwarded-proto") or headers:get(":scheme"),
    ["x-forwarded-method"] = headers:get(":method"),
    ["x-forwarded-host"] = plain_host(headers),
    ["x-forwarded-uri"] = headers:get(":path"),
    ["x-forwarded-for"] = client_address(handle),
  }
  for name, value in pairs(extra(handle, headers)) do asked[name] = value end
  for _, name in ipairs(REQUEST_HEADERS) do asked[name] = asked[name] or headers:get(name) end
  local body
  if METHOD == "POST" then
    local buffered = handle:body()
    headers = handle:headers()
    body = buffered and buffered:getBytes(0, buffered:length()) or ""
    asked["content-encoding"] = headers:get("content-encoding")
  end
  local status, answer, said = call(handle, METHOD, asked, body)
  headers = handle:headers()  -- what was taken before waiting is no longer valid
  if not status then
    if DEGRADE then return end
    return handle:respond({[":status"] = tostring(ON_ERROR)}, "")
  end
  if status >= 300 then
    local out = {[":status"] = tostring(status)}
    for _, name in ipairs(CLIENT_HEADERS) do out[name] = answer[name] end
    return handle:respond(out, said or "")
  end
  for _, name in ipairs(UPSTREAM_HEADERS) do
    headers:remove(name)
    if answer[name] then headers:add(name, answer[name]) end
  end
end
"""

_OPA = r"""
local function arguments(path)
  local found, query = {}, path:match("%?(.*)$") or ""
  local function plain(text)
    return (text:gsub("+", " "):gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
  end
  for pair in query:gmatch("[^&]+") do
    local name, value = pair:match("^([^=]*)=(.*)$")
    name, value = plain(name or pair), name and plain(value) or true
    if found[name] == nil then found[name] = value
    elseif type(found[name]) == "table" then table.insert(found[name], value)
    else found[name] = {found[name], value} end
  end
  return found
end
function envoy_on_request(handle)
  local headers, all = handle:headers(), {}
  for name, value in pairs(headers) do
    if name:sub(1, 1) ~= ":" then all[name] = value end
  end
  all["host"] = headers:get(":authority")
  local address, port = client_address(handle)
  local path = headers:get(":path")
  local input = {
    type = "http",
    request = {
      scheme = headers:get(":scheme"), method = headers:get(":method"), host = plain_host(headers),
      port = GATEWAY_PORT, path = (path:gsub("%?.*$", "")), headers = all, query = arguments(path),
    },
    var = {remote_addr = address, remote_port = port, server_port = tostring(GATEWAY_PORT),
      timestamp = math.floor(handle:timestamp() / 1000)},
  }
  if WITH_BODY then
    local buffered = handle:body()
    local text = buffered and buffered:getBytes(0, buffered:length()) or ""
    input.request.body = json_data(text) or text
  end
  local status, answer, said =
    call(handle, "POST", {["content-type"] = "application/json"}, json_text({input = input}))
  headers = handle:headers()  -- what was taken before waiting is no longer valid
  if not status then return handle:respond({[":status"] = "403"}, "") end
  local data = json_data(said or "")
  local result = type(data) == "table" and data.result or nil
  if type(result) ~= "table" then return handle:respond({[":status"] = "503"}, "") end
  local told = type(result.headers) == "table" and result.headers or {}
  if not result.allow then
    local out = {[":status"] = tostring(result.status_code or 403)}
    for name, value in pairs(told) do out[name:lower()] = tostring(value) end
    local reason = result.reason
    if type(reason) == "table" then
      out["content-type"] = "application/json"
      reason = json_text(reason)
    end
    return handle:respond(out, reason and tostring(reason) or "")
  end
  for _, name in ipairs(UPSTREAM_HEADERS) do
    headers:remove(name:lower())
    for key, value in pairs(told) do
      if key:lower() == name:lower() then headers:add(name:lower(), tostring(value)) end
    end
  end
end
"""


def _service(use: Use, url: str) -> dict[str, Any]:
    """Return the Lua settings that lead to the service at *url*."""
    at = address_of(url)
    verify = use.config.get("ssl_verify", True) is not False
    return {
        "CLUSTER": cluster_of(use, at.host, at.port, tls=at.tls, verify=verify),
        "AUTHORITY": at.authority,
        "PATH": f"{at.path}?{at.query}" if at.query else at.path,
        "TIMEOUT": int(use.config.get("timeout", 3000)),
    }


def _account(use: Use, *exact: str) -> None:
    target = "EnvoyFilter lua"
    use.exact(*exact, "timeout", target=target)
    use.exact("ssl_verify", target="DestinationRule trafficPolicy.tls")
    note = "Envoy keeps connections to the service by itself"
    use.ignored("keepalive", "keepalive_timeout", "keepalive_pool", note=note)


@handles("forward-auth")
def forward_auth(use: Use) -> None:
    """Ask an address whether the request may pass; any 2xx is a yes, its headers go upstream."""
    config = use.config
    if config.get("consumer_header"):
        raise Inexpressible("consumer_header makes an answer's header an APISIX consumer")
    settings = {
        **_service(use, str(config["uri"])),
        "METHOD": str(config.get("request_method", "GET")),
        "REQUEST_HEADERS": [str(one).lower() for one in config.get("request_headers") or ()],
        "UPSTREAM_HEADERS": [str(one).lower() for one in config.get("upstream_headers") or ()],
        "CLIENT_HEADERS": [str(one).lower() for one in config.get("client_headers") or ()],
        "ON_ERROR": int(config.get("status_on_error", 403)),
        "DEGRADE": bool(config.get("allow_degradation", False)),
    }
    extra = lua_values({str(k).lower(): v for k, v in (config.get("extra_headers") or {}).items()})
    lua(use, settings, HTTP, f"local function extra(handle, headers) return {extra} end\n", _FORWARD)
    lists = ("request_headers", "upstream_headers", "client_headers", "extra_headers")
    _account(use, "uri", "request_method", "status_on_error", "allow_degradation", *lists)


@handles("opa")
def opa(use: Use) -> None:
    """Ask Open Policy Agent with the same input document as APISIX: the policies stay as they are."""
    config = use.config
    for key in ("with_route", "with_service", "with_consumer"):
        if config.get(key):
            raise Inexpressible(f"{key} sends APISIX's own objects to the policy")
    if not config.get("policy"):
        raise Inexpressible("no policy is named")
    base = str(config["host"]).rstrip("/")
    settings = {
        **_service(use, f"{base}/v1/data/{config['policy']}"),
        "GATEWAY_PORT": use.job.target.http_port,
        "WITH_BODY": bool(config.get("with_body", False)),
        "UPSTREAM_HEADERS": [str(one) for one in config.get("send_headers_upstream") or ()],
    }
    lua(use, settings, JSON, HTTP, _OPA)
    _account(use, "policy", "with_body", "send_headers_upstream")
    note = "the input names the gateway's Service port as server_port, and no server_addr"
    use.approximate("host", target="EnvoyFilter lua", note=note)
    use.ignored("with_route", "with_service", "with_consumer", note="off")
