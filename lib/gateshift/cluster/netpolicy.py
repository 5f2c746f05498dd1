"""Whether NetworkPolicies let the gateway reach the application's pods, by Kubernetes' own rules.

Policies are additive: a pod that no policy selects takes everything; a selected one takes what any of its
policies allows (NetworkPolicy v1). A peer is a namespace selector, a pod selector, both, or an IP block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gateshift.cluster.objects import Object, title_of

__all__ = ["Peer", "egress_problems", "ingress_problems", "selects"]


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody who connects: labels of the pod and of its namespace, the namespace's name."""

    namespace: str
    namespace_labels: Mapping[str, str]
    labels: Mapping[str, str]


def selects(selector: Mapping[str, object] | None, labels: Mapping[str, str]) -> bool:
    """Say whether a label selector matches; an empty one matches everything."""
    selector = selector or {}
    wanted = selector.get("matchLabels") or {}
    if not isinstance(wanted, Mapping) or not wanted.items() <= labels.items():
        return False
    expressions = selector.get("matchExpressions") or []
    return isinstance(expressions, list) and all(_expression(e, labels) for e in expressions)


def _expression(expression: Mapping[str, object], labels: Mapping[str, str]) -> bool:
    key, operator = str(expression.get("key")), expression.get("operator")
    given = expression.get("values") or []
    values = [str(v) for v in given] if isinstance(given, list) else []
    match operator:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    return False


def _types(policy: Object) -> set[str]:
    spec = policy["spec"]
    default = ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    return set(spec.get("policyTypes") or default)


def _admits(rule: Mapping[str, object], side: str, namespace: str, peer: Peer) -> str:
    """Return ``yes``, ``no`` or ``maybe`` (only an IP block, which may or may not hold the peer)."""
    peers = rule.get(side)
    if not peers or not isinstance(peers, list):
        return "yes"
    answer = "no"
    for one in peers:
        if one.get("ipBlock"):
            answer = "maybe"
            continue
        if "namespaceSelector" in one:
            if not selects(one["namespaceSelector"], peer.namespace_labels):
                continue
        elif peer.namespace != namespace:
            continue
        if selects(one.get("podSelector"), peer.labels):
            return "yes"
    return answer


def _verdict(policies: list[Object], direction: str, peer: Peer) -> str:
    side, rules = ("from", "ingress") if direction == "Ingress" else ("to", "egress")
    answers = [
        _admits(rule, side, p["metadata"]["namespace"], peer)
        for p in policies
        for rule in p["spec"].get(rules) or []
    ]
    return "yes" if "yes" in answers else "maybe" if "maybe" in answers else "no"


def ingress_problems(
    policies: Iterable[Object], pods: Iterable[Object], gateway: Peer
) -> tuple[list[str], list[str]]:
    """Return the policies that shut *gateway* out of some of *pods*, and those with only an IP block to say.

    Without pods, each policy is taken to select one.
    """
    every = [p for p in policies if "Ingress" in _types(p)]
    found = list(pods)
    groups: list[list[Object]] = [[p] for p in every]
    if found:
        groups = [
            [p for p in every if selects(p["spec"].get("podSelector"), pod["metadata"].get("labels") or {})]
            for pod in found
        ]
    shut: dict[str, None] = {}
    unsure: dict[str, None] = {}
    for group in filter(None, groups):
        answer = _verdict(group, "Ingress", gateway)
        if answer != "yes":
            (shut if answer == "no" else unsure).update(dict.fromkeys(title_of(p) for p in group))
    return list(shut), [t for t in unsure if t not in shut]


def egress_problems(
    policies: Iterable[Object], labels: Mapping[str, str], targets: Iterable[Peer]
) -> tuple[list[str], list[str]]:
    """Return the policies that keep a pod with *labels* from one of *targets*, and the unsure ones."""
    group = [p for p in policies if "Egress" in _types(p) and selects(p["spec"].get("podSelector"), labels)]
    if not group:
        return [], []
    titles = [title_of(p) for p in group]
    answers = {_verdict(group, "Egress", target) for target in targets}
    if "no" in answers:
        return titles, []
    return ([], titles) if "maybe" in answers else ([], [])
