"""The lint: every trap of Istio migrations that can be seen in objects alone, in a cluster or in files.

Pure. Each trap has a number in the list of docs/troubleshooting.md and one check, registered by kind in
:mod:`.lint_gateways`, :mod:`.lint_routes`, :mod:`.lint_policy` or :mod:`.lint_mesh`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gateshift.cluster.objects import Object
from gateshift.diagnose import lint_gateways, lint_mesh, lint_policy, lint_routes
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.lint_rules import CHECKS, World
from gateshift.diagnose.model import Cause, Probe
from gateshift.errors import GateshiftError, InputError

__all__ = ["KINDS", "PROBES", "lint"]

KINDS = (
    "Gateway",
    "VirtualService",
    "DestinationRule",
    "ServiceEntry",
    "PeerAuthentication",
    "RequestAuthentication",
    "AuthorizationPolicy",
    "EnvoyFilter",
    "Telemetry",
    "HTTPRoute",
    "Service",
    "Namespace",
    "Deployment",
    "DaemonSet",
    "HorizontalPodAutoscaler",
    "PodDisruptionBudget",
)
"""Kinds that the lint reads from a cluster, besides the mesh configuration."""

_REGISTERED = (
    lint_gateways,
    lint_mesh,
    lint_policy,
    lint_routes,
)  # imported so that their checks are registered


def lint(
    objects: Iterable[Object],
    *,
    version: str = "1.31",
    gateway_namespace: str = "istio-system",
    whole: Iterable[str] = (),
) -> tuple[Cause, ...]:
    """Return every trap visible in *objects*, in their order; *version* is the Istio they are for.

    What can only be judged against other objects (a Secret, a Service) is judged when these are given. Of
    the kinds in *whole* they are all there are, so that one which is not among them does not exist. Raises
    :class:`InputError` for a version without numbers.
    """
    numbers = _VERSION.match(version.strip())
    if numbers is None:
        raise InputError(f"{version!r} is no version of Istio", hint="write it as 1.31")
    every = [o for o in objects if isinstance(o, dict) and o.get("kind") and _ours(o)]
    world = World(every, (int(numbers[1]), int(numbers[2])), gateway_namespace, frozenset(whole))
    return tuple(
        cause for obj in every for check in CHECKS.get(obj["kind"], ()) for cause in check(obj, world)
    )


_VERSION = re.compile(r"v?(\d+)\.(\d+)")
_OF_KUBERNETES = frozenset({"", "apps", "autoscaling", "policy"})
_OF_GATEWAY_API = frozenset({"HTTPRoute"})


def _ours(obj: Object) -> bool:
    """Say whether an object is of the API that the checks judge: other APIs have kinds of the same name."""
    group, slash, _ = str(obj.get("apiVersion", "")).rpartition("/")
    if obj["kind"] in _OF_GATEWAY_API:
        return not slash or group.endswith("k8s.io")
    return not slash or group in _OF_KUBERNETES or group.endswith("istio.io")


def _look(facts: Facts) -> Iterable[Cause]:
    objects: list[Object] = []
    whole: list[str] = []
    unread: list[GateshiftError] = []
    istio = facts.params.istio
    for kind in KINDS:
        try:
            objects += facts.objects(kind)
            whole.append(kind)
        except GateshiftError as error:  # what may be read is judged all the same
            unread.append(error)
    try:
        mesh = facts.get(
            "ConfigMap", f"istio-{istio.revision}" if istio.revision else "istio", istio.namespace
        )
        if mesh is not None:
            objects.append({"kind": "ConfigMap", **mesh})
    except GateshiftError as error:
        unread.append(error)
    skipped = {
        o["metadata"]["name"]
        for o in objects
        if (o["metadata"].get("annotations") or {}).get("gateshift.dev/lab")
    }
    yield from lint(
        [o for o in objects if o["metadata"]["name"] not in skipped],
        version=istio.version,
        gateway_namespace=istio.namespace,
        whole=whole,
    )
    yield from lint_mesh.metrics_selector(facts.params.metrics.istio_selector)
    if unread:
        raise unread[0]  # said once, with the grant; the next run says the next one


PROBES = (Probe("traps", frozenset({"lint"}), "istioctl analyze --all-namespaces", _look),)
