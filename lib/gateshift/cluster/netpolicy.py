"""Whether NetworkPolicies let the gateway reach the application's pods, by Kubernetes' own rules.

Policies are additive: a pod that no policy selects takes everything; a selected one takes what any of its
policies allows (NetworkPolicy v1). A peer is a namespace selector, a pod selector, both, or an IP block; the
ports of a rule are those of the pod that is reached, by number, range or name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gateshift.cluster.objects import Object, title_of

__all__ = ["Peer", "Port", "Target", "egress_problems", "ingress_problems", "ports_of", "selects"]


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody who connects: labels of the pod and of its namespace, the namespace's name."""

    namespace: str
    namespace_labels: Mapping[str, str]
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Port:
    """One port of a pod. ``names`` are those that the pod gives it, None when they are not known."""

    number: int
    protocol: str = "TCP"
    names: frozenset[str] | None = frozenset()


@dataclass(frozen=True, slots=True)
class Target:
    """A pod to be reached, at these ports; None when it is not known which."""

    peer: Peer
    ports: tuple[Port, ...] | None = None


def ports_of(pod: Object, services: Iterable[Object]) -> tuple[Port, ...] | None:
    """Return the ports of *pod* that *services* of its namespace send to; None when none selects it.

    A Service names the port it sends to by number or by the name that the pod's container gives it.
    """
    labels = pod["metadata"].get("labels") or {}
    spec = pod.get("spec") or {}
    own = [
        (int(p["containerPort"]), str(p.get("protocol", "TCP")), str(p.get("name", "")))
        for c in (spec.get("containers") or []) + (spec.get("initContainers") or [])
        for p in c.get("ports") or []
    ]
    mine = [s for s in services if (chosen := s["spec"].get("selector")) and chosen.items() <= labels.items()]
    if not mine:
        return None
    found: dict[Port, None] = {}
    for one in (port for service in mine for port in service["spec"].get("ports") or []):
        protocol, target = str(one.get("protocol", "TCP")), one.get("targetPort", one.get("port"))
        if isinstance(target, str) and not target.isdigit():
            number = next((n for n, p, name in own if (p, name) == (protocol, target)), None)
        else:
            number = int(target)
        if number is not None:
            names = frozenset(name for n, p, name in own if (n, p) == (number, protocol) and name)
            found[Port(number, protocol, names)] = None
    return tuple(found)


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


def _opens(rule: Mapping[str, object], port: Port | None) -> str:
    """Return whether the ports of *rule* hold *port*; ``maybe`` where that is not known."""
    listed = rule.get("ports")
    if not listed or not isinstance(listed, list):
        return "yes"
    if port is None:
        return "maybe"
    answer = "no"
    for one in listed:
        if one.get("protocol", "TCP") != port.protocol:
            continue
        given = one.get("port")
        if given is None:
            return "yes"
        if isinstance(given, str) and not given.isdigit():
            if port.names is None:
                answer = "maybe"
            elif given in port.names:
                return "yes"
        elif int(given) <= port.number <= int(one.get("endPort") or given):
            return "yes"
    return answer


_ANSWERS = ("no", "maybe", "yes")


def _verdict(policies: list[Object], direction: str, peer: Peer, ports: Iterable[Port] | None) -> str:
    """Return ``yes`` when every one of *ports* is open between *peer* and the pod, ``no`` when none is."""
    side, rules = ("from", "ingress") if direction == "Ingress" else ("to", "egress")
    answers = {
        max(
            (
                min(
                    _admits(rule, side, p["metadata"]["namespace"], peer),
                    _opens(rule, port),
                    key=_ANSWERS.index,
                )
                for p in policies
                for rule in p["spec"].get(rules) or []
            ),
            key=_ANSWERS.index,
            default="no",
        )
        for port in (ports or (None,))
    }
    return answers.pop() if len(answers) == 1 else "maybe"


def ingress_problems(
    policies: Iterable[Object], pods: Iterable[Object], gateway: Peer, services: Iterable[Object] = ()
) -> tuple[list[str], list[str]]:
    """Return the policies that shut *gateway* out of some of *pods*, and those that may.

    A pod is wanted at the ports that *services* send to. A policy may shut out when only an IP block lets
    anybody in, or only some of the ports are open. Without pods, each policy is taken to select one.
    """
    every = [p for p in policies if "Ingress" in _types(p)]
    found, sending = list(pods), list(services)
    groups: list[tuple[list[Object], tuple[Port, ...] | None]] = [([p], None) for p in every]
    if found:
        groups = [
            (
                [
                    p
                    for p in every
                    if selects(p["spec"].get("podSelector"), pod["metadata"].get("labels") or {})
                ],
                ports_of(pod, sending),
            )
            for pod in found
        ]
    shut: dict[str, None] = {}
    unsure: dict[str, None] = {}
    for group, ports in groups:
        if not group:
            continue
        answer = _verdict(group, "Ingress", gateway, ports)
        if answer != "yes":
            (shut if answer == "no" else unsure).update(dict.fromkeys(title_of(p) for p in group))
    return list(shut), [t for t in unsure if t not in shut]


def egress_problems(
    policies: Iterable[Object], labels: Mapping[str, str], targets: Iterable[Target]
) -> tuple[list[str], list[str]]:
    """Return the policies that keep a pod with *labels* from one of *targets*, and the unsure ones."""
    group = [p for p in policies if "Egress" in _types(p) and selects(p["spec"].get("podSelector"), labels)]
    if not group:
        return [], []
    titles = [title_of(p) for p in group]
    answers = {_verdict(group, "Egress", target.peer, target.ports) for target in targets}
    if "no" in answers:
        return titles, []
    return ([], titles) if "maybe" in answers else ([], [])
