"""Plugins that answer or change answers: redirect, response-rewrite, mocking, fault-injection, echo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from gateshift.translate.conditions import Condition, Inexpressible, from_vars
from gateshift.translate.plugins.registry import Use, handles
from gateshift.translate.plugins.values import header_value

_CODES = (301, 302, 303, 307, 308)


@handles("redirect")
def redirect(use: Use) -> None:
    """Redirect by a literal address, or from HTTP to HTTPS."""
    config = use.config
    if config.get("regex_uri"):
        raise Inexpressible("a redirect computed by a regular expression has no equivalent")
    if config.get("http_to_https"):
        use.approximate(
            "http_to_https", note="301 for every method; APISIX sends 308 for other than GET and HEAD"
        )
        use.guard(
            "https",
            [{"port": use.job.target.http_port}],
            {"redirect": {"scheme": "https", "redirectCode": 301}},
        )
        use.job.warn(
            f"{use.draft.resource}: redirects HTTP to HTTPS; behind a load balancer that ends TLS and speaks "
            "HTTP to the gateway this would loop"
        )
        use.ignored("ret_code", "append_query_string", "encode_uri", note="http_to_https decides")
        return
    target = str(config.get("uri", ""))
    code = int(config.get("ret_code", 302))
    if code not in _CODES:
        raise Inexpressible(f"Istio cannot redirect with status {code}")
    if "$" in target and target not in ("$request_uri", "$uri"):
        raise Inexpressible("a redirect address with variables has no equivalent")
    found: dict[str, Any] = {"redirectCode": code}
    if "$" not in target:
        parts = urlsplit(target)
        if parts.scheme:
            found["scheme"] = parts.scheme
        if parts.netloc:
            found["authority"] = parts.netloc
        found["uri"] = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    use.draft.terminal = {"redirect": found}
    kept = "" if config.get("append_query_string") else "the query string is kept; APISIX drops it"
    use.approximate("uri", target="VirtualService http[].redirect", note=kept)
    use.exact("ret_code", target="VirtualService http[].redirect.redirectCode")
    use.exact("append_query_string", "http_to_https")
    use.approximate("encode_uri", note="the address is sent as written")


def _added(raw: object) -> list[tuple[str, str]]:
    if isinstance(raw, Mapping):
        return [(str(k), str(v)) for k, v in raw.items()]
    pairs = []
    for line in raw if isinstance(raw, list) else ():
        name, _, value = str(line).partition(":")
        pairs.append((name.strip(), value.strip()))
    return pairs


@handles("response-rewrite")
def response_rewrite(use: Use) -> None:
    """Set, add and remove response headers; bodies and status need code in the gateway."""
    config = use.config
    raw = config.get("headers")
    if isinstance(raw, Mapping):
        structured = any(isinstance(raw.get(key), Mapping | list) for key in ("set", "add", "remove"))
        groups: Mapping[str, Any] = raw if structured else {"set": raw}
        for name, value in _added(groups.get("set")):
            if value == "":
                use.draft.remove_header("response", name.lower())
            else:
                use.draft.headers("response", "set")[name.lower()] = header_value(value)
        for name, value in _added(groups.get("add")):
            use.draft.headers("response", "add")[name.lower()] = header_value(value)
        for name in groups.get("remove") or ():
            use.draft.remove_header("response", str(name).lower())
        note = "not set on answers that Envoy makes before it has chosen a route"
        use.approximate("headers", target="VirtualService http[].headers.response", note=note)
    for key in ("status_code", "body", "body_base64", "filters", "vars"):
        if config.get(key):
            use.manual(key, note="Envoy changes no bodies or statuses: do it in the backend")
            use.block(f"it changes {key} of the answer", "do it in the backend, then sign for the loss")
    use.ignored("body_base64", note="off")


def _body(text: object) -> dict[str, str]:
    return {"string": str(text)}


@handles("mocking")
def mocking(use: Use) -> None:
    """Answer a fixed example without a backend."""
    config = use.config
    example = config.get("response_example")
    if example is None or config.get("response_schema"):
        raise Inexpressible("an answer made up from a schema has no equivalent")
    status = int(config.get("response_status", 200))
    use.draft.terminal = {"directResponse": {"status": status, "body": _body(example)}}
    headers = use.draft.headers("response", "set")
    headers["content-type"] = str(config.get("content_type", "application/json;charset=utf8"))
    if config.get("with_mock_header", True):
        headers["x-mock-by"] = "APISIX/gateshift"
    for name, value in (config.get("response_headers") or {}).items():
        headers[str(name).lower()] = header_value(value)
    use.exact("response_status", "response_example", target="VirtualService http[].directResponse")
    use.exact("content_type", "response_headers", target="VirtualService http[].headers.response")
    use.approximate("with_mock_header", note="the header's value names gateshift")
    use.none("delay", note="Envoy answers at once")
    if not config:
        use.exact()


def _percent(raw: Mapping[str, Any]) -> dict[str, float]:
    # APISIX takes every request when the share is absent, Istio none.
    return {"value": float(raw.get("percentage", 100))}


def _faults(use: Use, raw: Mapping[str, Any], key: str) -> list[Condition]:
    if raw.get("vars"):
        found: list[Condition] = []
        for one in raw["vars"]:
            found += from_vars(one, use.ports())
        return found
    del key
    return [{}]


@handles("fault-injection")
def fault_injection(use: Use) -> None:
    """Abort or delay a share of the requests."""
    config, draft = use.config, use.draft
    fault: dict[str, Any] = {}
    abort, delay = config.get("abort"), config.get("delay")
    conditions: list[Condition] = [{}]
    if isinstance(delay, Mapping):
        fault["delay"] = {"fixedDelay": f"{float(delay['duration']):g}s", "percentage": _percent(delay)}
        conditions = _faults(use, delay, "delay")
        use.approximate(
            "delay", target="VirtualService http[].fault.delay", note="after authentication, not before"
        )
    if isinstance(abort, Mapping):
        status, whole = int(abort["http_status"]), float(abort.get("percentage", 100)) >= 100
        conditions = _faults(use, abort, "abort")
        if whole and not fault:
            answer: dict[str, Any] = {"directResponse": {"status": status}}
            if abort.get("body"):
                answer["directResponse"]["body"] = _body(abort["body"])
            headers = {str(k).lower(): header_value(v) for k, v in (abort.get("headers") or {}).items()}
            if headers:
                answer["headers"] = {"response": {"set": headers}}
            use.guard("abort", conditions, answer)
            use.exact("abort", target="VirtualService http[].directResponse")
            return
        if abort.get("body") or abort.get("headers"):
            raise Inexpressible("an abort of a share of requests cannot carry a body or headers")
        fault["abort"] = {"httpStatus": status, "percentage": _percent(abort)}
        use.approximate(
            "abort", target="VirtualService http[].fault.abort", note="after authentication, not before"
        )
    if conditions == [{}]:
        draft.http["fault"] = fault
    else:
        use.vary([(conditions, {"fault": fault})])
    use.job.warn(f"{draft.resource}: Istio ignores retries and timeouts where a fault is set")


@handles("echo")
def echo(use: Use) -> None:
    """A test plugin: a fixed body is answered, other bodies cannot be changed."""
    config = use.config
    if config.get("before_body") or config.get("after_body"):
        raise Inexpressible("text around the backend's body has no equivalent")
    for name, value in (config.get("headers") or {}).items():
        use.draft.headers("response", "set")[str(name).lower()] = header_value(value)
    use.exact("headers", target="VirtualService http[].headers.response")
    if config.get("body"):
        raise Inexpressible("replacing the backend's body has no equivalent")
