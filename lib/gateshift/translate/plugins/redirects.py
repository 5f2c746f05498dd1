"""redirect: by an address, by a regular expression, or from HTTP to HTTPS."""

from __future__ import annotations

import re
from typing import Any

from gateshift.translate.conditions import Inexpressible
from gateshift.translate.plugins.registry import Use, handles
from gateshift.translate.plugins.rewrite import regex_rewrite

_CODES = {
    301: "MOVED_PERMANENTLY",
    302: "FOUND",
    303: "SEE_OTHER",
    307: "TEMPORARY_REDIRECT",
    308: "PERMANENT_REDIRECT",
}
_ADDRESS = re.compile(
    r"(?:(https?)://(?:(\$host|\$\{host\})(?::(\d+))?|(\$http_host|[^/$]*)))?((?:/[^$]*)?)(\$request_uri|\$uri)?"
)


def _to_https(use: Use) -> None:
    """Redirect plain requests as APISIX does: 301 for GET and HEAD, 308 for the rest."""
    # The header is what a load balancer in front says, once its hops are trusted, else Envoy's own.
    plain = {"withoutHeaders": {"x-forwarded-proto": {"exact": "https"}}}
    read = {**plain, "method": {"regex": "GET|HEAD"}}
    use.guard("https-read", [read], {"redirect": {"scheme": "https", "redirectCode": 301}})
    use.guard("https", [plain], {"redirect": {"scheme": "https", "redirectCode": 308}})
    use.exact("http_to_https", target="VirtualService http[].redirect")
    use.job.warn(
        f"{use.draft.resource}: redirects HTTP to HTTPS; behind a load balancer that ends TLS this loops "
        "unless gatewayTopology.numTrustedProxies makes Envoy believe its X-Forwarded-Proto"
    )
    use.ignored("ret_code", "append_query_string", "encode_uri", note="http_to_https decides")


@handles("redirect")
def redirect(use: Use) -> None:
    """Redirect by an address, a regular expression, or from HTTP to HTTPS."""
    config = use.config
    if config.get("http_to_https"):
        _to_https(use)
        return
    code = int(config.get("ret_code", 302))
    if code not in _CODES:
        raise Inexpressible(f"Envoy cannot redirect with status {code}")
    found: dict[str, Any] = {"redirectCode": code}
    strip = not config.get("append_query_string")
    if config.get("regex_uri"):
        pattern, replacement = (str(one) for one in list(config["regex_uri"])[:2])
        if not re.match(r"/(?!/)[^?]*$", replacement):
            raise Inexpressible(
                "Envoy redirects by a pattern only to a path of the same host without a query"
            )
        rule = regex_rewrite(pattern, replacement)
        rewriting = {"pattern": {"regex": rule["match"]}, "substitution": rule["rewrite"]}
        # A VirtualService has no field for it; the address below is replaced by the merge.
        found["uri"] = "/"
        use.draft.patches["redirect"] = {"redirect": {"regex_rewrite": rewriting, "strip_query": strip}}
        note = "a path that does not match is sent to itself; APISIX sends it on to the upstream"
        use.approximate("regex_uri", target="EnvoyFilter redirect.regex_rewrite", note=note)
    else:
        keeps_query, keeps_port = _literal(use, str(config.get("uri", "")), found)
        if strip and not keeps_query:
            use.draft.patches["redirect"] = {"redirect": {"strip_query": True}}
        if keeps_port:
            note = "a port in the client's Host header stays in the address"
            use.approximate("uri", target="VirtualService http[].redirect", note=note)
        else:
            use.exact("uri", target="VirtualService http[].redirect")
    use.draft.terminal = {"redirect": found}
    use.exact("ret_code", target="VirtualService http[].redirect.redirectCode")
    use.exact("append_query_string", "http_to_https")
    use.approximate("encode_uri", note="the address is sent as written")


def _literal(use: Use, target: str, found: dict[str, Any]) -> tuple[bool, bool]:
    """Fill in a redirect to *target*; says whether it keeps the query, and a port that ``$host`` lacks."""
    parts = _ADDRESS.fullmatch(target)
    if parts is None or not target:
        raise Inexpressible("a redirect address with variables other than $host and $request_uri")
    scheme, host, port, authority, path, variable = parts.groups()
    if scheme:
        found["scheme"] = scheme
    if port:
        found["port"] = int(port)
    if authority and "$" not in authority:
        found["authority"] = authority
    keeps_port = bool(host) and not port
    if variable and path not in ("", "/"):
        prefix = path.rstrip("/").replace("\\", "\\\\")
        rewriting = {"pattern": {"regex": "^(.*)$"}, "substitution": rf"{prefix}\1"}
        found["uri"] = "/"
        patch = {"regex_rewrite": rewriting, "strip_query": variable == "$uri"}
        use.draft.patches["redirect"] = {"redirect": patch}
        return True, keeps_port
    if not variable:
        found["uri"] = path or "/"
        if "?" in path:
            use.job.warn(f"{use.draft.resource}: the address brings its own query string")
    return variable == "$request_uri", keeps_port
