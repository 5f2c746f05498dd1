"""consumer-restriction: which consumers may use a route.

Where jwt-auth tells the consumer, a DENY policy on the token's claim decides (the guide's RBAC). Where a
filter of the route does (key-auth, basic-auth), Lua reads the name that the filter wrote; it stands after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateshift.istio.builders import dns_label
from gateshift.plan import digest_of
from gateshift.translate.conditions import Inexpressible
from gateshift.translate.job import Policy
from gateshift.translate.plugins.envoy import lua
from gateshift.translate.plugins.identity import credentials, groups
from gateshift.translate.plugins.lua import JSON
from gateshift.translate.plugins.registry import Use, handles

_LUA = r"""
local function refuse(handle, status, message)
  handle:respond({[":status"] = tostring(status), ["content-type"] = "application/json"},
    json_text({message = message}) .. "\n")
end
function envoy_on_request(handle)
  local headers = handle:headers()
  local name = headers:get("x-consumer-username")
  local value = GROUPS and GROUPS[name or ""] or (not GROUPS and name) or nil
  if not value then
    return refuse(handle, 401, "The request is rejected, please check the " .. TYPE .. " for this request")
  end
  local block = DENIED[value] or (ALLOWED and not ALLOWED[value]) or false
  local methods = METHODS[value]
  if methods and not methods[headers:get(":method")] then block = true end
  if block then return refuse(handle, CODE, MESSAGE) end
end
"""
_FILTERS = ("key-auth", "basic-auth")


def _names(raw: object) -> list[str]:
    return [str(one) for one in raw] if isinstance(raw, list | tuple) else []


def _allowed_methods(raw: object) -> dict[str, dict[str, bool]]:
    found: dict[str, dict[str, bool]] = {}
    for one in raw if isinstance(raw, list | tuple) else ():
        if isinstance(one, Mapping):
            found[str(one["user"])] = {str(m): True for m in one.get("methods") or ()}
    return found


def _by_claim(use: Use, allowed: list[str], denied: list[str]) -> None:
    """Deny by the claim that names the consumer's key."""
    jwt = next(one.config for one in use.draft.effective.plugins if one.name == "jwt-auth")
    claim = f"request.auth.claims[{jwt.get('key_claim_name', 'key')}]"
    keys = {name: str(c.get("key", name)) for _, name, c in credentials(use, "jwt-auth")}
    exempt = use.preflights
    for names, field in ((allowed, "notValues"), (denied, "values")):
        values = sorted(keys[one] for one in names if one in keys)
        if not names or (not values and field == "values"):
            continue
        # No consumer of the list has a key: nobody may pass, which no claim can say.
        digest = digest_of([claim, field, values])[:8]
        use.draft.policies.append(
            Policy(
                f"consumer-restriction:{digest}:{','.join(exempt)}",
                dns_label("consumers", digest),
                when=(({"key": claim, field: values or ["-"]},),),
                exempt_methods=exempt,
            )
        )
    target = "AuthorizationPolicy DENY"
    use.exact("whitelist", "blacklist", "type", target=target)
    use.approximate("rejected_msg", note="Envoy answers `RBAC: access denied`")
    if int(use.config.get("rejected_code", 403)) == 403:
        use.exact("rejected_code", target=target)
    use.approximate("rejected_code", note="Envoy answers 403")


@handles("consumer-restriction")
def consumer_restriction(use: Use) -> None:
    """Let only some consumers pass, told by the token's claim or by the name that a filter wrote."""
    config = use.config
    kind = str(config.get("type", "consumer_name"))
    if kind not in ("consumer_name", "consumer_group_id"):
        raise Inexpressible(f"{kind} restricts a consumer to routes, and Istio has no consumers")
    allowed, denied = _names(config.get("whitelist")), _names(config.get("blacklist"))
    methods = _allowed_methods(config.get("allowed_by_methods"))
    if not allowed and not denied and not methods:
        raise Inexpressible("neither whitelist, blacklist nor allowed_by_methods is given")
    used = {one.name for one in use.draft.effective.plugins}
    if used & {"jwt-auth"} and kind == "consumer_name" and not methods:
        _by_claim(use, allowed, denied)
        return
    if not used & set(_FILTERS):
        raise Inexpressible("no filter of the route tells who the consumer is (key-auth, basic-auth)")
    settings: dict[str, Any] = {
        "TYPE": kind,
        "GROUPS": groups(use) if kind == "consumer_group_id" else None,
        "ALLOWED": dict.fromkeys(allowed, True) or None,
        "DENIED": dict.fromkeys(denied, True),
        "METHODS": methods,
        "CODE": int(config.get("rejected_code", 403)),
        "MESSAGE": str(config.get("rejected_msg", f"The {kind} is forbidden.")),
    }
    lua(use, settings, JSON, _LUA)
    keys = ("whitelist", "blacklist", "allowed_by_methods", "rejected_code", "rejected_msg", "type")
    use.exact(*keys, target="EnvoyFilter lua")
