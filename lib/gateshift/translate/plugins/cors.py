"""cors: corsPolicy on the route, and an own answer for OPTIONS, which APISIX never forwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateshift.apisix.model import Kind
from gateshift.istio.versions import Feature
from gateshift.translate.conditions import Inexpressible, check_regex, rewrap
from gateshift.translate.model import Fidelity
from gateshift.translate.plugins.registry import Use, handles

_ALL_METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "CONNECT", "TRACE"]
_USUAL_HEADERS = ["*", "authorization", "content-type", "accept", "origin", "x-requested-with"]


def _split(value: object) -> list[str]:
    return [one.strip() for one in str(value).split(",") if one.strip()]


def _origins(use: Use) -> list[dict[str, str]]:
    config = use.config
    target = "VirtualService http[].corsPolicy.allowOrigins"
    patterns = config.get("allow_origins_by_regex") or []
    found = [{"regex": f".*(?:{check_regex(str(one))}).*"} for one in patterns]
    use.exact("allow_origins_by_regex", target=target)
    found += [{"exact": one} for one in _from_metadata(use)]
    names = _split(config.get("allow_origins", "" if found else "*"))
    if "*" in names or "**" in names:
        use.approximate("allow_origins", target=target, note="Envoy answers with the request's origin, not *")
        return [{"regex": ".*"}]
    use.exact("allow_origins", target=target)
    return [{"exact": one} for one in names] + found


def _unmatched(use: Use, origins: list[dict[str, str]]) -> None:
    """Answer preflights of other origins, which older versions would send to the backend unchecked."""
    known = "|".join(f"(?:{rewrap(one)})" for one in origins)
    other = {"method": {"exact": "OPTIONS"}, "withoutHeaders": {"origin": {"regex": known}}}
    use.guard("preflight", [other], {"directResponse": {"status": 200}})


def _from_metadata(use: Use) -> list[str]:
    """Return the origins that plugin_metadata lists under the names of allow_origins_by_metadata."""
    names = use.config.get("allow_origins_by_metadata") or []
    metadata = use.job.configuration.get(Kind.PLUGIN_METADATA, "cors")
    raw = metadata.spec.get("allow_origins") if metadata else None
    found: list[str] = []
    for name in names:
        if not isinstance(raw, Mapping) or str(name) not in raw:
            raise Inexpressible(f"plugin_metadata of cors has no origins named {name}")
        found += _split(raw[str(name)])
        if metadata is not None:
            place = ("allow_origins", str(name))
            use.job.mark(metadata, place, Fidelity.EXACT, "VirtualService http[].corsPolicy.allowOrigins")
    use.exact("allow_origins_by_metadata", target="VirtualService http[].corsPolicy.allowOrigins")
    return found


@handles("cors")
def cors(use: Use) -> None:
    """Convert the policy. Credentials are only allowed where APISIX allows them."""
    config = use.config
    target = "VirtualService http[].corsPolicy"
    policy: dict[str, Any] = {"allowOrigins": _origins(use)}
    methods = _split(config.get("allow_methods", "*"))
    policy["allowMethods"] = _ALL_METHODS if set(methods) & {"*", "**"} else methods
    use.exact("allow_methods", target=f"{target}.allowMethods")
    headers = _split(config.get("allow_headers", "*"))
    if "**" in headers:
        policy["allowHeaders"] = _USUAL_HEADERS
        note = "the asked headers are not echoed: name the ones your clients send beside the usual"
        use.approximate("allow_headers", target=f"{target}.allowHeaders", note=note)
    else:
        policy["allowHeaders"] = headers
        use.exact("allow_headers", target=f"{target}.allowHeaders")
    if config.get("expose_headers"):
        policy["exposeHeaders"] = [one for one in _split(config["expose_headers"]) if one != "**"] or ["*"]
    use.exact("expose_headers", target=f"{target}.exposeHeaders")
    age = int(config.get("max_age", 5))
    if age >= 0:
        policy["maxAge"] = f"{age}s"
        use.exact("max_age", target=f"{target}.maxAge")
    else:
        use.approximate("max_age", note="-1 (never cache) is left to the browser's default")
    policy["allowCredentials"] = bool(config.get("allow_credential", False))
    use.exact("allow_credential", target=f"{target}.allowCredentials")
    if use.job.has(Feature.CORS_UNMATCHED_PREFLIGHTS):
        policy["unmatchedPreflights"] = "IGNORE"
    elif policy["allowOrigins"] != [{"regex": ".*"}]:
        _unmatched(use, policy["allowOrigins"])
    use.none("timing_allow_origins", "timing_allow_origins_by_regex", note="no Timing-Allow-Origin in Envoy")
    if not config:
        note = "any origin, any method; Envoy answers with the request's origin, not *"
        use.approximate(target=target, note=note)
    use.draft.http["corsPolicy"] = policy
    # Envoy's CORS filter answers preflights only on routes that forward, and only where both headers have a
    # value; APISIX answers every OPTIONS. (A header that is missing counts as empty.)
    plain = [
        {"method": {"exact": "OPTIONS"}, "withoutHeaders": {name: {"regex": ".+"}}}
        for name in ("origin", "access-control-request-method")
    ]
    use.guard("options", plain, {"directResponse": {"status": 200}})
