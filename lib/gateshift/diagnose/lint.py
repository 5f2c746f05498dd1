"""The lint: every trap of Istio migrations that can be seen in objects alone, in a cluster or in files.

Pure. Each trap has a number in the list of docs/troubleshooting.md and one check, registered by kind in
:mod:`.lint_gateways`, :mod:`.lint_routes`, :mod:`.lint_policy` or :mod:`.lint_mesh`.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateshift.cluster.objects import Object
from gateshift.diagnose import lint_gateways, lint_mesh, lint_policy, lint_routes
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.lint_rules import CHECKS, World
from gateshift.diagnose.model import Cause, Probe
from gateshift.errors import GateshiftError

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
    "Service",
    "Namespace",
    "Deployment",
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
    objects: Iterable[Object], *, version: str = "1.31", gateway_namespace: str = "istio-system"
) -> tuple[Cause, ...]:
    """Return every trap visible in *objects*, in their order; *version* is the Istio they are for.

    What can only be judged against other objects (a Secret, a Service) is judged when these are given.
    """
    every = [o for o in objects if isinstance(o, dict) and o.get("kind")]
    world = World(every, tuple(int(n) for n in version.split(".")[:2]), gateway_namespace)
    return tuple(
        cause for obj in every for check in CHECKS.get(obj["kind"], ()) for cause in check(obj, world)
    )


def _look(facts: Facts) -> Iterable[Cause]:
    objects: list[Object] = []
    for kind in KINDS:
        objects += facts.objects(kind)
    istio = facts.params.istio
    for name in ("istio", f"istio-{istio.revision}" if istio.revision else ""):
        mesh = facts.get("ConfigMap", name, istio.namespace) if name else None
        if mesh is not None:
            objects.append({"kind": "ConfigMap", **mesh})
    skipped = {
        o["metadata"]["name"]
        for o in objects
        if (o["metadata"].get("annotations") or {}).get("gateshift.dev/lab")
    }
    yield from lint(
        [o for o in objects if o["metadata"]["name"] not in skipped],
        version=istio.version,
        gateway_namespace=istio.namespace,
    )
    try:
        yield from lint_mesh.metrics_selector(facts.params.metrics.istio_selector)
    except GateshiftError:
        return


PROBES = (Probe("traps", frozenset({"lint"}), "istioctl analyze --all-namespaces", _look),)
