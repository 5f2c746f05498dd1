"""cors: corsPolicy on the route, and an own answer for OPTIONS, which APISIX never forwards."""

from __future__ import annotations

from typing import Any

from gateshift.istio.versions import Feature
from gateshift.translate.conditions import check_regex
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
    names = _split(config.get("allow_origins", "" if found else "*"))
    if "*" in names or "**" in names:
        use.approximate("allow_origins", target=target, note="Envoy answers with the request's origin, not *")
        return [{"regex": ".*"}]
    use.exact("allow_origins", target=target)
    return [{"exact": one} for one in names] + found


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
    use.none("timing_allow_origins", "timing_allow_origins_by_regex", note="no Timing-Allow-Origin in Envoy")
    if config.get("allow_origins_by_metadata"):
        note = "put the origins of plugin_metadata cors into allow_origins"
        use.manual("allow_origins_by_metadata", note=note)
        use.job.warn(f"{use.owner.origin}: cors takes origins from plugin_metadata: {note}")
    if not config:
        use.exact(target=target, note="the plugin's defaults: any origin, any method")
    use.draft.http["corsPolicy"] = policy
    # Envoy's CORS filter answers preflights only on routes that forward; APISIX answers every OPTIONS.
    plain = [
        {"method": {"exact": "OPTIONS"}, "withoutHeaders": {name: {"regex": "*"}}}
        for name in ("origin", "access-control-request-method")
    ]
    use.guard("options", plain, {"directResponse": {"status": 200}})
