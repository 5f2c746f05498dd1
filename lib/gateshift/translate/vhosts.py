"""A virtual host as policies see it: the name in the Host header, whatever port stands behind it.

The gateway's Envoy chooses the virtual host without the port (``ignore_port_in_host_matching``, from the last
colon on); an AuthorizationPolicy compares the whole Host header, by whole text, prefix or suffix. A name with
any port can be written for a single host, not for a wildcard, and not for "every other". There a filter at
the head of the chain writes the bare name into the request's metadata, and the policy reads that. The same
filter refuses what is no host name: ``b.com:1:2`` would be another host to the policy than to the router.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateshift.translate.job import Job
from gateshift.translate.tables import ANY_HOST, HostList, covers

__all__ = ["host_filter", "places"]

_NAME = "experimental.envoy.filters.http.gateshift[host]"
_LUA = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"
_CODE = r"""function envoy_on_request(handle)
  local host = string.lower(handle:headers():get(":authority") or "")
  local name = host:match("^([^:%[%]]+)$") or host:match("^([^:%[%]]+):%d*$")
    or host:match("^(%[[%x:.]+%])$") or host:match("^(%[[%x:.]+%]):%d*$")
  if not name or name:sub(1, 1) == "." then
    return handle:respond({[":status"] = "400"}, "")
  end
  handle:streamInfo():dynamicMetadata():set("envoy.filters.http.gateshift", "host", name)
end
"""


def places(host: str, lists: Mapping[str, HostList]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Return where virtual host *host* is, each as (part of a policy's operation, its conditions)."""
    if not host.startswith("*"):
        return [({"hosts": [host, f"{host}:*"]}, [])]
    others = sorted(one for one in lists if covers(host, one))
    named = {} if host == ANY_HOST else {"values": [host]}
    spared = {"notValues": others} if others else {}
    if not named and not spared:
        return [({}, [])]
    found: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [({}, [{"key": _NAME, **named, **spared}])]
    if named:
        # Should somebody take the filter away, the usual ports of a wildcard stay closed all the same.
        known = [text for one in others for text in ([one] if one[0] == "*" else [one, f"{one}:*"])]
        usual: dict[str, Any] = {"hosts": [host, f"{host}:80", f"{host}:443"]}
        found.append((usual | ({"notHosts": known} if known else {}), []))
    return found


def host_filter(job: Job, lists: Mapping[str, HostList]) -> list[dict[str, Any]]:
    """Return the EnvoyFilter that tells policies the bare name, where a wildcard or hostless one needs it."""
    sources = {
        draft.resource
        for host, pairs in lists.items()
        if host.startswith("*")
        for draft, _ in pairs
        if draft.policies and not draft.blocked
    }
    if not sources:
        return []
    chain = {"filterChain": {"filter": {"name": "envoy.filters.network.http_connection_manager"}}}
    code = {"@type": _LUA, "default_source_code": {"inline_string": _CODE}}
    patch = {
        "applyTo": "HTTP_FILTER",
        "match": {"context": "GATEWAY", "listener": chain},
        "patch": {
            "operation": "INSERT_FIRST",
            "value": {"name": "gateshift.hosts", "typed_config": code},
        },
    }
    return job.envoy_filters(("gateshift-hosts",), [patch], sources)
