"""Envoy configuration that several plugins share: Lua on one route, settings of the whole gateway."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from gateshift.istio.builders import build, dns_label
from gateshift.plan import digest_of
from gateshift.translate.job import HttpFilter
from gateshift.translate.plugins.registry import Use

__all__ = ["HCM", "cluster_of", "lua", "lua_text", "on_gateway", "quoted"]

_LUA = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"
_PER_ROUTE = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.LuaPerRoute"
HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_NOTHING = "function envoy_on_request(handle) end\n"


_CLOSED = r"""
-- Envoy goes on with a request whose script failed; a check that cannot be made must not be passed.
if envoy_on_request then
  local check = envoy_on_request
  function envoy_on_request(handle)
    local done, why = pcall(check, handle)
    if not done then
      handle:logErr(tostring(why))
      handle:respond({[":status"] = "500"}, "")
    end
  end
end
"""


def quoted(text: str) -> str:
    """Write a Lua string whose bytes are all printable."""
    body = "".join(chr(b) if 32 <= b < 127 and chr(b) not in '"\\' else f"\\{b:03d}" for b in text.encode())
    return f'"{body}"'


def lua_text(value: Any) -> str:
    """Write plain data as a Lua literal."""
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"[{quoted(str(k))}]={lua_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Iterable):
        return "{" + ",".join(lua_text(one) for one in value) + "}"
    raise TypeError(f"{type(value).__name__} has no Lua literal")


def lua(use: Use, settings: Mapping[str, Any], *code: str) -> None:
    """Run Lua on this route: *settings* become local variables before *code*.

    The filter itself does nothing; a route names a source that the filter keeps, so no other route is
    touched and routes with equal settings share one copy.
    """
    name = f"gateshift.{use.name.replace('-', '_')}" + ("_global" if use.is_global else "")
    base = {"@type": _LUA, "default_source_code": {"inline_string": _NOTHING}, "source_codes": {}}
    use.job.use_filter(HttpFilter(name, use.name, use.priority, base))
    head = "".join(f"local {key} = {lua_text(value)}\n" for key, value in settings.items())
    text = head + "".join(one.lstrip("\n") for one in (*code, _CLOSED))
    label = digest_of(text)
    use.job.filters[name].config["source_codes"][label] = {"inline_string": text}
    use.draft.filters[name] = {"@type": _PER_ROUTE, "name": label}


def cluster_of(
    use: Use, url_host: str, port: int, *, tls: bool, verify: bool = True, grpc: bool = False
) -> str:
    """Return the name of Istio's cluster for a service that a filter calls, and keep it in the output."""
    source = f"{use.owner.kind}/{use.owner.id}"
    backend = use.book.external(url_host, port, tls=tls, source=source, verify=verify, grpc=grpc)
    use.draft.mirrors.append(backend)
    return f"outbound|{backend.port}||{backend.host}"


def on_gateway(use: Use, concern: str, value: Mapping[str, Any]) -> None:
    """Merge *value* into the HTTP connection managers of the gateway: it holds for every route."""
    job = use.job
    name = dns_label("gateshift", concern)
    job.source(name, f"{use.owner.kind}/{use.owner.id}")
    match = {
        "context": "GATEWAY",
        "listener": {"filterChain": {"filter": {"name": "envoy.filters.network.http_connection_manager"}}},
    }
    patch = {"operation": "MERGE", "value": {"typed_config": {"@type": HCM, **value}}}
    spec = {
        "workloadSelector": {"labels": dict(job.target.gateway_selector)},
        "configPatches": [{"applyTo": "NETWORK_FILTER", "match": match, "patch": patch}],
    }
    known = [one for one in job.extra.get("envoy-filter.yaml", []) if one["metadata"]["name"] == name]
    if known and json.dumps(known[0]["spec"], sort_keys=True) != json.dumps(spec, sort_keys=True):
        job.warn(f"routes ask for different {concern} settings of the gateway: the first route's are used")
        return
    job.extra["envoy-filter.yaml"] = [
        *(one for one in job.extra.get("envoy-filter.yaml", []) if one["metadata"]["name"] != name),
        build(job.version, "EnvoyFilter", name, job.target.gateway_namespace, spec, job.sources[name]),
    ]
