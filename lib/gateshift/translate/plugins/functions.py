"""Functions of a cloud as the route's backend: azure-functions, openfunction, openwhisk."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from gateshift.translate.plugins.envoy import lua
from gateshift.translate.plugins.registry import Use, handles
from gateshift.translate.plugins.values import address_of, guard_credential
from gateshift.translate.upstream_policy import duration

_POST = r"""
function envoy_on_request(handle)
  handle:headers():replace(":method", "POST")
  handle:headers():replace(":path", TARGET)
end
"""


def _send_to(use: Use, address: str) -> str:
    """Make *address* the route's only backend; return its path."""
    at = address_of(address)
    verify = use.config.get("ssl_verify", True) is not False
    source = f"{use.owner.kind}/{use.owner.id}"
    backend = use.book.external(at.host, at.port, tls=at.tls, source=source, verify=verify)
    use.draft.backends = use.draft.default_backends = [backend]
    use.draft.http["rewrite"] = {"authority": at.authority}
    # APISIX gives a function 3 s, each try by itself, and does not try again.
    use.draft.http["timeout"] = duration(float(use.config.get("timeout", 3000)) / 1000)
    use.draft.http["retries"] = {"attempts": 0}
    use.exact("ssl_verify", target="DestinationRule trafficPolicy.tls")
    use.approximate("timeout", target="VirtualService http[].timeout", note="for the whole answer")
    use.ignored("keepalive", "keepalive_timeout", "keepalive_pool", note="Envoy keeps connections by itself")
    return at.path


def _credential(use: Use, header: str, value: str) -> None:
    if value and guard_credential(use, header, value):
        use.draft.headers("request", "set")[header] = value.replace("%", "%%")
    note = f"stands in the VirtualService as header {header}, readable to whoever may read it"
    use.approximate("authorization", "service_token", target="VirtualService headers", note=note)


def _authorization(use: Use) -> Mapping[str, Any]:
    raw = use.config.get("authorization")
    return raw if isinstance(raw, Mapping) else {}


def _replace_path(use: Use, path: str) -> None:
    if any(one.kind != "exact" for one in use.draft.patterns) and path != "/":
        use.job.warn(f"{use.draft.resource}: every path of the route goes to {path}, as in APISIX")
    use.draft.http["rewrite"]["uriRegexRewrite"] = {"match": "^/.*$", "rewrite": path.replace("\\", "\\\\")}


@handles("azure-functions")
def azure_functions(use: Use) -> None:
    """Send the request to the function's address with its key."""
    _replace_path(use, _send_to(use, str(use.config["function_uri"])))
    keys = _authorization(use)
    _credential(use, "x-functions-key", str(keys.get("apikey", "")))
    if keys.get("clientid"):
        use.draft.headers("request", "set")["x-functions-clientid"] = str(keys["clientid"])
    use.exact("function_uri", target="VirtualService http[].route")


@handles("openfunction")
def openfunction(use: Use) -> None:
    """Send the request to the function's address with its service token."""
    _replace_path(use, _send_to(use, str(use.config["function_uri"])))
    token = str(_authorization(use).get("service_token", ""))
    if token:
        _credential(use, "authorization", "Basic " + base64.b64encode(token.encode()).decode())
    use.exact("function_uri", target="VirtualService http[].route")


@handles("openwhisk")
def openwhisk(use: Use) -> None:
    """Invoke the action with a POST and wait for its result."""
    config = use.config
    _send_to(use, str(config["api_host"]))
    package = f"{config['package']}/" if config.get("package") else ""
    name = quote(f"{package}{config['action']}")
    query = urlencode(
        {
            "blocking": "true",
            "result": str(bool(config.get("result", True))).lower(),
            "timeout": int(config.get("timeout", 3000)),
        }
    )
    path = f"/api/v1/namespaces/{quote(str(config['namespace']))}/actions/{name}?{query}"
    lua(use, {"TARGET": path}, _POST)
    token = str(config["service_token"])
    _credential(use, "authorization", "Basic " + base64.b64encode(token.encode()).decode())
    use.draft.headers("request", "set")["content-type"] = "application/json"
    use.exact("api_host", "namespace", "package", "action", "result", target="EnvoyFilter lua")
    note = "an action's own statusCode, headers and body are not unwrapped"
    use.approximate("action", target="EnvoyFilter lua", note=note)
