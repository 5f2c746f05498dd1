"""traffic-split, traffic-label and proxy-mirror: where requests go besides the route's own upstream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from gateshift.apisix.model import Kind
from gateshift.translate.conditions import Condition, Inexpressible, from_vars
from gateshift.translate.job import Split
from gateshift.translate.plugins.registry import Use, handles
from gateshift.translate.plugins.values import header_value
from gateshift.translate.upstreams import Backend


def _match(use: Use, raw: Any) -> list[Condition]:
    found: list[Condition] = []
    for one in raw or ():
        if isinstance(one, Mapping) and one.get("vars"):
            found += from_vars(one["vars"], use.ports())
    return found or [{}]


def shares(use: Use, items: list[Any], place: tuple[str | int, ...], *, tcp: bool = False) -> list[Backend]:
    """Return the destinations of one rule; an item without upstream is the route's own."""
    job, found = use.job, list[Backend]()
    for position, item in enumerate(items):
        weight = int(item.get("weight", 1))
        if item.get("upstream_id") is not None:
            owner = job.configuration.get(Kind.UPSTREAM, item["upstream_id"])
            if owner is None:
                raise Inexpressible(f"upstream {item['upstream_id']} is not in the configuration")
            backends = use.book.resolve(owner.spec, owner, (), use.draft, tcp=tcp)
        elif isinstance(item.get("upstream"), Mapping):
            path = (*use.path, *place, position, "upstream")
            backends = use.book.resolve(item["upstream"], use.owner, path, use.draft, tcp=tcp)
        else:
            backends = use.draft.default_backends
        if not backends:
            raise Inexpressible("one of its upstreams has no nodes")
        total = sum(one.weight for one in backends) or 1
        # The share is spread over the upstream's own nodes in their proportion.
        found += [replace(one, weight=weight * one.weight * 100 // total) for one in backends]
    return _reduced(found)


def _reduced(shares: list[Backend]) -> list[Backend]:
    merged: dict[Backend, int] = {}
    for one in shares:
        key = replace(one, weight=0)
        merged[key] = merged.get(key, 0) + one.weight
    smallest = 1
    if all(weight % 100 == 0 for weight in merged.values()):
        smallest = 100
    return [replace(one, weight=weight // smallest) for one, weight in merged.items()]


@handles("traffic-split")
def traffic_split(use: Use) -> None:
    """Rules are tried in order; the first that matches decides, else the route's own upstream."""
    for number, rule in enumerate(use.config.get("rules") or ()):
        items = list(rule.get("weighted_upstreams") or ())
        conditions = _match(use, rule.get("match"))
        if not items:
            continue
        place = ("rules", number, "weighted_upstreams")
        chosen = shares(use, items, place)
        if conditions == [{}]:
            use.draft.backends = chosen
            break
        use.draft.splits.append(Split(tuple(conditions), chosen))
    use.exact(target="VirtualService http[].route[].weight")


@handles("traffic-label")
def traffic_label(use: Use) -> None:
    """Set headers by the first rule whose condition holds; labels by weight have no equivalent."""
    variants = []
    for rule in use.config.get("rules") or ():
        actions = list(rule.get("actions") or ())
        headers = [one.get("set_headers") for one in actions if one.get("set_headers")]
        if len(actions) > 1:
            raise Inexpressible("a label chosen by weight has no equivalent")
        conditions: list[Condition] = from_vars(rule["match"], use.ports()) if rule.get("match") else [{}]
        values = {str(k).lower(): header_value(use, v) for k, v in (headers[0] if headers else {}).items()}
        variants.append((conditions, {"headers": {"request": {"set": values}}}))
    use.vary(variants)
    use.exact(target="VirtualService http[].headers.request")


@handles("proxy-mirror")
def proxy_mirror(use: Use) -> None:
    """Send a copy to another address; its answer is thrown away, as in APISIX."""
    config = use.config
    parts = urlsplit(str(config["host"]))
    if not parts.hostname:
        raise Inexpressible("the mirror's address has no host")
    tls = parts.scheme in ("https", "grpcs")
    port = parts.port or (443 if tls else 80)
    source = f"{use.owner.kind}/{use.owner.id}"
    backend = use.book.external(parts.hostname, port, tls=tls, source=source)
    use.draft.mirrors.append(backend)
    mirror = {
        "destination": {"host": backend.host, "port": {"number": backend.port}},
        "percentage": {"value": float(config.get("sample_ratio", 1)) * 100},
    }
    use.draft.http.setdefault("mirrors", []).append(mirror)
    use.exact("host", target="VirtualService http[].mirrors")
    use.exact("sample_ratio", target="VirtualService http[].mirrors.percentage")
    if config.get("path"):
        raise Inexpressible("a mirror with another path has no equivalent")
    use.ignored("path_concat_mode", note="no path is given")
