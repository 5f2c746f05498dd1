"""Tree 2, which rule takes a request and why not the one meant, by the tables that Envoy really has."""

from __future__ import annotations

from collections.abc import Iterator

from gateshift.diagnose.causes import found
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.model import Cause
from gateshift.diagnose.routes import Explanation, Rule, host_matches

__all__ = ["who_takes"]


def who_takes(facts: Facts) -> Iterator[Cause]:
    """Say which rule takes each request asked about, and why not the one that was meant."""
    for host, path in facts.subjects:
        yield from _explained(facts, facts.explanation(host, path))


def _bare(told: Explanation) -> str:
    """The path without its query, which may hold a token."""
    return told.path.partition("?")[0]


def _explained(facts: Facts, told: Explanation) -> Iterator[Cause]:
    request = f"{told.host}{_bare(told)}"
    meant = _meant(facts, told)
    taker = told.taker
    if taker is None or not (taker.owner or taker.clusters):
        yield from _nobody(facts, told, request, meant)
        return
    if meant is not None and meant != taker:
        yield from _not_meant(told, request, taker, meant)
        return
    refused = _answered(facts, told, 404)
    # What answers an error, while a later rule would send the same request elsewhere, stands in its way.
    other = next((r for r in told.also if r.clusters and r.clusters != taker.clusters), None)
    if other is not None and (taker.status >= 400 or refused):
        yield found(
            "rule-order",
            f"{refused or f'{request} -> {taker.target}'}; Envoy tries {taker.host} top-down: "
            f"#{taker.position} "
            f"{taker} ({taker.target}), then #{other.position} {other} ({other.target}), which takes it as "
            "well",
            f"move {other} before {taker}",
            taker=taker,
            request=request,
            meant=other,
        )
    elif taker.status >= 400:
        yield found(
            "rule-answers",
            f"{request} -> {taker}: {taker.target}",
            f"correct or remove the rule in VirtualService {taker.owner}",
            rule=taker,
            status=taker.status,
        )
    if refused and taker.clusters:
        yield found(
            "backend-404",
            f"{refused}, from {', '.join(taker.clusters)} by rule {taker}",
            "ask the backend directly; compare rewrite and path with the old route",
        )
    yield found(
        "who-takes",
        f"{taker.target}; table {told.table}, virtual host {told.virtual_host}"
        + (f"; would also take it: {', '.join(map(str, told.also[:3]))}" if told.also else ""),
        "if another rule was meant, move it before this one: the first match wins",
        request=request,
        rule=taker.name or f"#{taker.position}",
        name=taker.owner,
    )


def _not_meant(told: Explanation, request: str, taker: Rule, meant: Rule) -> Iterator[Cause]:
    """Why the rule that the operator named does not take the request."""
    if meant in told.also:
        yield found(
            "rule-order",
            f"Envoy tries {taker.host} top-down: #{taker.position} {taker} ({taker.target}), "
            f"then #{meant.position} {meant} ({meant.target})",
            f"move {meant} before {taker}",
            taker=taker,
            request=request,
            meant=meant,
        )
    elif why := dict(told.failed).get(meant):
        yield found(
            "no-rule",
            f"{meant} {why}; {taker} takes it",
            f"correct the match of {meant}",
            request=f"{request} as meant",
        )
    elif meant in told.elsewhere:
        yield found(
            "host-shadowed",
            f"{meant} would take {_bare(told)}, but Envoy never leaves the virtual host {told.virtual_host}",
            f"repeat the rule in VirtualService {taker.owner}",
            host=told.host,
            wider=meant.host.rpartition(":")[0] or meant.host,
        )


def _answered(facts: Facts, told: Explanation, code: int) -> str:
    """Say how many of these requests a backend itself answered with *code*; empty for none."""
    entries = facts.asked(told.host, told.path)
    own = [e for e in entries if e.code == code and e.details == "via_upstream"]
    return f"{len(own)} of the last {len(entries)} answers were {code}" if own else ""


def _meant(facts: Facts, told: Explanation) -> Rule | None:
    """The rule that the operator named by ``rule`` (its name, or VirtualService/name)."""
    if not facts.rule:
        return None
    every = [*([told.taker] if told.taker else []), *told.also, *(r for r, _ in told.failed), *told.elsewhere]
    for one in every:
        if facts.rule in {one.name, one.owner, f"{one.owner}/{one.name}", one.owner.rpartition("/")[2]}:
            return one
    return None


def _nobody(facts: Facts, told: Explanation, request: str, meant: Rule | None) -> Iterator[Cause]:
    owned = [(r, why) for r, why in told.failed if r.owner]
    if told.elsewhere and owned:
        wide = told.elsewhere[0]
        yield found(
            "host-shadowed",
            f"{wide} would take {_bare(told)}, but Envoy never leaves the virtual host {told.virtual_host}",
            f"repeat the rule in VirtualService {owned[0][0].owner}, whose exact host hides the wider one",
            host=told.host,
            wider=wide.host.rpartition(":")[0] or wide.host,
        )
        return
    if not owned:
        hosts = {h for v in facts.objects("VirtualService") for h in v["spec"].get("hosts") or []}
        for route in [*facts.objects("HTTPRoute"), *facts.objects("GRPCRoute")]:
            hosts |= set(route["spec"].get("hostnames") or ["*"])
        if not any(host_matches(h, told.host) for h in hosts):
            yield found(
                "host-unknown",
                f"hosts with rules: {', '.join(sorted(hosts)) or 'none'}",
                "add the host to a VirtualService and to the Gateway's servers",
                host=told.host,
            )
        return  # rules for the host exist and are not in Envoy: the other probes say why
    if any(e.cluster for e in facts.asked(told.host, told.path)):
        return  # some rule took it: by headers or a query, which the log does not tell
    why = dict(told.failed).get(meant) if meant else None
    named = (
        f"{meant} {why}" if why else "; ".join(f"{r.name or r.position}: {w}" for r, w in _near(owned, told))
    )
    yield found(
        "no-rule",
        f"virtual host {told.virtual_host}: {named}",
        f"correct the match in VirtualService {(meant or owned[0][0]).owner}, or add one for {_bare(told)}",
        request=request,
    )


def _near(owned: list[tuple[Rule, str]], told: Explanation) -> list[tuple[Rule, str]]:
    """The rules closest to the path: by the length of the beginning they share."""

    def shared(pair: tuple[Rule, str]) -> int:
        text = pair[1].rpartition(" ")[2]
        return sum(1 for a, b in zip(text, told.path, strict=False) if a == b)

    return sorted(owned, key=lambda pair: (-shared(pair), pair[0].position))[:3]
