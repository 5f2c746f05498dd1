"""Plugins that answer themselves: mocking, fault-injection, echo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateshift.translate.conditions import Condition, Inexpressible, from_vars
from gateshift.translate.plugins.registry import Use, handles
from gateshift.translate.plugins.values import header_value


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
        headers[str(name).lower()] = header_value(use, value)
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
            headers = {str(k).lower(): header_value(use, v) for k, v in (abort.get("headers") or {}).items()}
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
        use.draft.headers("response", "set")[str(name).lower()] = header_value(use, value)
    use.exact("headers", target="VirtualService http[].headers.response")
    if config.get("body"):
        raise Inexpressible("replacing the backend's body has no equivalent")
