"""redirect: by an address, by a regular expression, or from HTTP to HTTPS."""

from __future__ import annotations

import re
from typing import Any

from gateshift.translate.conditions import Inexpressible
from gateshift.translate.plugins.registry import Use, handles
from gateshift.translate.plugins.rewrite import path_condition, regex_rewrite
from gateshift.translate.regexes import top_level

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
        _by_pattern(use, pattern, replacement, found, strip=strip)
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
        if not strip and "?" in found.get("uri", ""):
            note = "the address brings a query of its own, and Envoy does not add the request's to it"
            use.approximate("append_query_string", note=note)
    use.exact("ret_code", target="VirtualService http[].redirect.redirectCode")
    use.exact("append_query_string", "http_to_https")
    use.approximate("encode_uri", note="the address is sent as written")


_TARGET = re.compile(r"(?:(https?)://([^/$?#\\]+))?((?:/(?!/)|\$)[^#]*)")
_TO_THE_END = re.compile(r"(?:(?<!\\)\$|\.\*|\(\.\*\))$")


def _by_pattern(use: Use, pattern: str, replacement: str, found: dict[str, Any], *, strip: bool) -> None:
    """Redirect the paths in which *pattern* is found; others go to the upstream, as in APISIX.

    Envoy rewrites the path alone, with the request's query behind it or without any: a query in the
    address is exact only where the whole of it is constant.
    """
    parts = _TARGET.fullmatch(replacement)
    if parts is None:
        raise Inexpressible("the address is neither a path nor a plain http or https address")
    scheme, authority, path = parts.groups()
    whole = pattern.startswith("^") and len(top_level(pattern)) == 1
    if authority and not whole:
        raise Inexpressible("an address with a host takes the place of a whole path, not of a part of it")
    if path.startswith("$") and not (whole and _begins_with_slash(pattern, path)):
        raise Inexpressible(f"the path of the address begins with {path[:2]}, which need not begin with /")
    if scheme:
        found |= {"scheme": scheme, "authority": authority}
    if "?" in path:
        if "$" in path or not strip or not (whole and _TO_THE_END.search(pattern)):
            raise Inexpressible("Envoy cannot make a query string of parts of the path, or add to one")
        found["uri"] = path
        patch: dict[str, Any] = {}
    else:
        rule = regex_rewrite(pattern, path)
        rewriting = {"pattern": {"regex": rule["match"]}, "substitution": rule["rewrite"]}
        # A VirtualService has no field for it; the address below is replaced by the merge.
        found["uri"] = "/"
        patch = {"redirect": {"regex_rewrite": rewriting, "strip_query": strip}}
    name = "redirect-global" if use.is_global else "redirect"
    use.guard(name, [path_condition(pattern)], {"redirect": found}, patch)
    note = "Envoy reads the path as sent, APISIX the decoded one"
    target = "EnvoyFilter redirect.regex_rewrite" if patch else "VirtualService http[].redirect"
    use.approximate("regex_uri", target=target, note=note)


def _begins_with_slash(pattern: str, path: str) -> bool:
    """Tell whether the group that *path* begins with always takes part and begins with a slash."""
    number = re.match(r"\$\{?([1-9])\}?(?!\d)", path)
    starts = [one.end() for one in re.finditer(r"(?<!\\)\((?!\?)", pattern)]
    if number is None or int(number[1]) > len(starts):
        return False
    group = re.match(r"/(?![*?{])[^()|\\]*\)(?![*?{|])", pattern[starts[int(number[1]) - 1] :])
    return group is not None


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
    return variable == "$request_uri", keeps_port
