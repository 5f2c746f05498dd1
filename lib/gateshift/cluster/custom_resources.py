"""APISIX's configuration from the objects that its ingress controller acts on, read from a running cluster.

Read-only and paged. What comes out is what the same objects give as files. Which objects count is what the
controller says: all of its own group, Ingresses of its class (the reader decides), and routes of the Gateway
API whose parent is a Gateway of its class. A kind whose definition is missing has no objects, and is named;
a kind that may not be listed stops the reading: half a configuration would be translated as if it were all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gateshift.apisix.model import Configuration, Origin, Severity
from gateshift.apisix.readers import read_documents
from gateshift.apisix.readers.builder import Builder
from gateshift.apisix.readers.source import Document
from gateshift.cluster.client import Cluster
from gateshift.cluster.failures import ApiError
from gateshift.cluster.objects import API_GATEWAY, GATEWAY_API, Object, name_of, title_of
from gateshift.errors import ClusterError

__all__ = ["KINDS", "read_custom_resources"]

_APISIX = "apisix.apache.org"
_CONTROLLER = "apisix"

_OWN = (
    "ApisixUpstream",
    "ApisixPluginConfig",
    "ApisixRoute",
    "ApisixGlobalRule",
    "ApisixTls",
    "ApisixConsumer",
)
_POLICIES = ("BackendTrafficPolicy", "HTTPRoutePolicy", "L4RoutePolicy", "PluginConfig", "Consumer")
_ROUTES = ("HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute")

KINDS: dict[str, tuple[str, ...]] = {
    **{kind: tuple(f"{_APISIX}/{v}/{kind}" for v in ("v2", "v2beta3", "v2beta2")) for kind in _OWN},
    **{kind: (f"{_APISIX}/v1alpha1/{kind}",) for kind in _POLICIES},
    **{kind: tuple(f"{GATEWAY_API}/{v}/{kind}" for v in ("v1", "v1alpha3", "v1alpha2")) for kind in _ROUTES},
    "Ingress": ("networking.k8s.io/v1/Ingress",),
}
"""What is read, by kind: the versions in which it may be served, the first that is served is taken."""


@dataclass(slots=True)
class _Reading:
    """One reading in progress: *denied* names what may not be read."""

    cluster: Cluster
    namespaces: Sequence[str]
    denied: list[str]

    def objects(self, kind: str, *, everywhere: bool = False) -> list[Object]:
        """Return the objects of *kind* (``group/version/Kind``) in the namespaces, as far as allowed."""
        found: list[Object] = []
        for namespace in (None,) if everywhere else self.namespaces or (None,):
            with self._allowed("list", kind, f" in namespace {namespace}" if namespace else ""):
                found += self.cluster.list(kind, namespace)
        return found

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """Return one object; None when it does not exist or may not be read."""
        with self._allowed("get", kind, f" {name}"):
            return self.cluster.get(kind, name, namespace)
        return None

    @contextmanager
    def _allowed(self, verb: str, kind: str, what: str) -> Iterator[None]:
        """Note a right that is missing and go on: all of them are named together."""
        try:
            yield
        except ApiError as error:
            if error.status != 403:
                raise
            resource = self.cluster.resource(kind)
            self.denied.append(f"{verb} {resource.plural}.{resource.group}{what}")


def read_custom_resources(
    cluster: Cluster, namespaces: Sequence[str] = (), *, source: str = "kube://"
) -> Configuration:
    """Read the configuration; *namespaces* limits it (all of them when empty), *source* is its origin.

    Raises :class:`ClusterError` naming everything that may not be read, and nothing is returned then.
    """
    reading = _Reading(cluster, tuple(namespaces), [])
    builder = Builder()
    served = {
        kind: next((v for v in versions if cluster.serves(v)), None) for kind, versions in KINDS.items()
    }
    absent = [kind for kind in _OWN if served[kind] is None]
    if absent:
        builder.warn(
            Origin(source, _APISIX),
            f"the cluster does not serve {', '.join(absent)}: the definitions are missing, so none were read",
            "check the context; these kinds come with APISIX's ingress controller",
        )
    if namespaces:
        builder.find(
            Severity.INFO, Origin(source, ""), f"only the namespaces {', '.join(namespaces)} were read"
        )
    # The classes belong to no namespace and tell whose an Ingress is.
    found = reading.objects("IngressClass", everywhere=True)
    for kind, name in served.items():
        if name is not None and kind not in _ROUTES:
            found += reading.objects(name)
    routes = [one for kind in _ROUTES if (name := served[kind]) for one in reading.objects(name)]
    found += _of_apisix(reading, routes, builder, source)
    if reading.denied:
        raise ClusterError(
            "APISIX's configuration cannot be read from the cluster, these rights are missing: "
            + "; ".join(dict.fromkeys(reading.denied)),
            hint="grant them (deploy/rbac.yaml has all of them), or name the namespaces that you may read",
        )
    documents = [Document(_where(source, one), i, one) for i, one in enumerate(found)]
    return read_documents(documents, builder)


def _where(source: str, obj: Object) -> str:
    namespace = obj["metadata"].get("namespace")
    return f"{source}/{namespace}" if namespace else source


def _of_apisix(
    reading: _Reading, routes: Sequence[Object], builder: Builder, source: str
) -> Iterator[Object]:
    """Yield the routes that hang on a Gateway of APISIX's class, and those Gateways."""
    gateways: dict[tuple[str, str], Object | None] = {}
    for route in routes:
        space = str(route["metadata"].get("namespace", ""))
        parents = [
            (str(p.get("namespace") or space), str(p.get("name")))
            for p in (route.get("spec") or {}).get("parentRefs") or []
            if p.get("kind", "Gateway") == "Gateway"
        ]
        for where in parents:
            if where not in gateways:
                gateways[where] = _gateway(reading, *where)
        ours = any(gateways[where] is not None for where in parents)
        if ours:
            yield route
        else:
            origin = Origin(_where(source, route), f"{route['kind']}/{name_of(route)}")
            builder.find(
                Severity.INFO, origin, f"{title_of(route)} hangs on no Gateway of APISIX: it was left out"
            )
    yield from (gateway for gateway in gateways.values() if gateway is not None)


def _gateway(reading: _Reading, namespace: str, name: str) -> Object | None:
    """Return a Gateway of APISIX's class; None for one of another class or that does not exist."""
    gateway = reading.get(API_GATEWAY, name, namespace)
    if gateway is None:
        return None
    named = str((gateway.get("spec") or {}).get("gatewayClassName", ""))
    found = reading.get("GatewayClass", named)
    return gateway if found and _CONTROLLER in str(found["spec"].get("controllerName", "")) else None
