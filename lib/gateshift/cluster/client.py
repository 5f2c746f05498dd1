"""The only door to the Kubernetes API: typed errors, a time limit on every call, every call on record.

Objects are plain JSON. Writes are server-side applies by the field manager ``gateshift``; a conflict with
another manager is named and never forced. The discovery of kinds is cached per instance, because the
client library's own cache is a file shared by all clusters behind one address.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from kubernetes import client as kube_client

from gateshift.cluster.failures import ApiError, ConflictError, NotServedError
from gateshift.cluster.kubeconfig import load_configuration
from gateshift.cluster.logstream import LogStream
from gateshift.cluster.objects import API_VERSIONS, MANAGER, Object, title_of
from gateshift.cluster.resources import Call, Resource
from gateshift.cluster.transport import TIMEOUT
from gateshift.errors import ClusterError
from gateshift.params.model import ClusterParams

__all__ = ["ApiError", "Call", "Cluster", "ConflictError", "NotServedError", "Resource"]

_PAGE = 500
_PAGES = {"CustomResourceDefinition": 25}
"""Objects in one page: as many as are sent well within the time limit. Schemas have hundreds of KiB each."""
_EXPIRED = 3
"""Times that a list is begun again because its pages ended (410) while it was read."""


class Cluster(LogStream):
    """One cluster behind one kubeconfig context. Safe to use from several threads."""

    def __init__(
        self,
        api: kube_client.ApiClient,
        *,
        kubeconfig: str | None = None,
        context: str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        super().__init__(api, timeout)
        self._lock = threading.Lock()
        self._served: dict[str, dict[str, Resource]] = {}
        self._uid: str | None = None
        self._version: str | None = None
        self.kubeconfig = kubeconfig
        self.context = context
        self.calls: set[Call] = set()
        """Every (verb, resource) used so far; the permissions table is tested against it."""

    @classmethod
    def connect(cls, params: ClusterParams, *, timeout: float = TIMEOUT) -> Cluster:
        """Open the kubeconfig (or the pod's service account) and check that it is the intended cluster.

        Raises :class:`ClusterError` when the context does not exist, the API does not answer, or
        ``params.uid`` is set and another cluster answers.
        """
        configuration = load_configuration(params)
        cluster = cls(
            kube_client.ApiClient(configuration),
            kubeconfig=params.kubeconfig,
            context=params.context,
            timeout=timeout,
        )
        if params.uid is not None and cluster.uid != params.uid:
            raise ClusterError(
                f"this is not the intended cluster: its uid is {cluster.uid}, not {params.uid}",
                hint="select the right context, or correct cluster.uid in the params file",
            )
        return cluster

    # -- identity ---------------------------------------------------------------------------------

    @property
    def uid(self) -> str:
        """Uid of the namespace kube-system: it identifies the cluster for its whole life."""
        if self._uid is None:
            namespace = self.get("Namespace", "kube-system")
            if namespace is None:
                raise ClusterError("the cluster has no namespace kube-system, so it cannot be identified")
            self._uid = str(namespace["metadata"]["uid"])
        return self._uid

    @property
    def version(self) -> str:
        """Version of the API server, for example ``v1.36.3``."""
        if self._version is None:
            self._version = str(self.raw("/version")["gitVersion"])
        return self._version

    # -- reading ----------------------------------------------------------------------------------

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """Return one object, or None when it does not exist. *kind* may be ``group/version/Kind``."""
        resource = self.resource(kind)
        self._note("get", resource)
        return self._optional("GET", resource.path(namespace, name), f"{kind} {name}")

    def _pages(
        self, resource: Resource, namespace: str | None, query: Mapping[str, str], subject: str
    ) -> list[Object]:
        """Return all pages of a list. Raises :class:`ApiError` 410 when the server forgot where it was."""
        found: list[Object] = []
        more: dict[str, str] = {}
        while True:
            page = self._request("GET", resource.path(namespace), query={**query, **more}, subject=subject)
            found += [
                {"apiVersion": resource.api_version, "kind": resource.kind, **item}
                for item in page.get("items") or []
            ]
            token = page.get("metadata", {}).get("continue")
            if not token:
                return found
            more = {"continue": token}

    def list(
        self, kind: str, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> list[Object]:
        """Return all objects of a kind, in one namespace or (None) in all."""
        resource = self.resource(kind)
        self._note("list", resource)
        query: dict[str, str] = {"limit": str(_PAGES.get(resource.kind, _PAGE))}
        if labels:
            query["labelSelector"] = labels
        if fields:
            query["fieldSelector"] = fields
        begun = 1
        while True:
            try:
                return self._pages(resource, namespace, query, f"list of {kind}")
            except ApiError as error:
                if error.status != 410 or begun == _EXPIRED:
                    raise
                begun += 1

    def serves(self, kind: str) -> bool:
        """Say whether the cluster knows this kind (for a custom resource: whether its CRD is there)."""
        try:
            self.resource(kind)
        except NotServedError:
            return False
        return True

    def log(
        self,
        namespace: str,
        pod: str,
        *,
        container: str = "",
        tail: int = 100,
        limit: int = 256 * 1024,
    ) -> str:
        """Return the last *tail* lines of a container's log.

        Of more than *limit* bytes the server sends the oldest, so *limit* must hold *tail* lines.
        """
        self.calls.add(Call("get", "", "pods", "log"))
        query = {"tailLines": str(tail), "limitBytes": str(limit)}
        if container:
            query["container"] = container
        path = f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(pod)}/log"
        return self._send("GET", path, query=query, subject=f"log of pod {namespace}/{pod}").decode(
            "utf-8", "replace"
        )

    def raw(self, path: str) -> Any:
        """Return the JSON of a path that is no resource, such as ``/version``."""
        return self._request("GET", path, subject=path)

    def clock_skew(self) -> float | None:
        """Return by how many seconds the API server's clock is ahead (to 1 s), None if it does not tell."""
        begun = time.time()
        self.raw("/version")
        told = self._date
        if told is None:
            return None
        # The header has whole seconds: the middle of that second against the middle of the call.
        return told + 0.5 - (begun + time.time()) / 2

    def may(self, call: Call, namespace: str | None = None) -> bool:
        """Ask the cluster whether we may do *call* (SelfSubjectAccessReview)."""
        attributes = {"verb": call.verb, "group": call.group, "resource": call.resource}
        if call.subresource:
            attributes["subresource"] = call.subresource
        if namespace:
            attributes["namespace"] = namespace
        review = self.create(
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            }
        )
        return bool(review.get("status", {}).get("allowed"))

    # -- writing ----------------------------------------------------------------------------------

    def apply(
        self, obj: Object, dry_run: bool = False, *, manager: str = MANAGER, force: bool = False
    ) -> Object:
        """Apply server-side as ``gateshift`` and return the result; never force a conflict.

        *force* and another *manager* are for dry runs only: to ask what another tool would change.

        Raises :class:`ConflictError` naming the other managers and fields, :class:`ApiError` with the
        admission webhook's words when it refuses.
        """
        resource = self._resource_of(obj)
        self._note("patch", resource)
        self._note("create", resource)
        if force and not dry_run:
            raise ValueError("conflicts are never forced: force is for dry runs only")
        query = {"fieldManager": manager, "fieldValidation": "Ignore" if force else "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        if force:
            query["force"] = "true"
        path = resource.path(obj["metadata"].get("namespace"), obj["metadata"]["name"])

        def send(**more: str) -> Object:
            return self._request(
                "PATCH",
                path,
                query={**query, **more},
                body=obj,
                content_type="application/apply-patch+yaml",
                subject=title_of(obj),
            )

        try:
            return send()
        except ConflictError as error:
            # A restored object (PUT) carries our own name as an updater; taking fields over from
            # ourselves is no conflict. Anybody else's field stays theirs.
            if set(error.owners.values()) != {MANAGER} or manager != MANAGER:
                raise
            return send(force="true")

    def create(self, obj: Object) -> Object:
        """Create; raises :class:`ConflictError` when it exists."""
        resource = self._resource_of(obj)
        self._note("create", resource)
        return self._request(
            "POST",
            resource.path(obj.get("metadata", {}).get("namespace")),
            query={"fieldManager": MANAGER},
            body=obj,
            subject=title_of(obj),
        )

    def update(self, obj: Object) -> Object:
        """Replace; with ``metadata.resourceVersion`` set, a change since the read is a ConflictError."""
        resource = self._resource_of(obj)
        self._note("update", resource)
        return self._request(
            "PUT",
            resource.path(obj["metadata"].get("namespace"), obj["metadata"]["name"]),
            query={"fieldManager": MANAGER},
            body=obj,
            subject=title_of(obj),
        )

    def delete(
        self,
        kind: str,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        dry_run: bool = False,
    ) -> bool:
        """Delete one object (only the one with *uid*, if given). Returns False when it was not there."""
        resource = self.resource(kind)
        self._note("delete", resource)
        body: dict[str, Any] = {"propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        if dry_run:
            body["dryRun"] = ["All"]
        found = self._optional("DELETE", resource.path(namespace, name), f"{kind} {name}", body=body)
        return found is not None

    # -- leases (migration.lock) --------------------------------------------------------------------

    def lease_get(self, namespace: str, name: str) -> Object | None:
        """Return the Lease or None."""
        return self.get("Lease", name, namespace)

    def lease_create(self, namespace: str, name: str, spec: Mapping[str, Any]) -> Object:
        """Create a Lease; raises :class:`ConflictError` when somebody was faster."""
        return self.create(
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"namespace": namespace, "name": name},
                "spec": dict(spec),
            }
        )

    def lease_update(self, lease: Object) -> Object:
        """Replace a Lease read before; raises :class:`ConflictError` when it changed since."""
        return self.update(lease)

    # -- discovery --------------------------------------------------------------------------------

    def resource(self, kind: str) -> Resource:
        """Find where *kind* is served. Raises :class:`NotServedError` when the cluster does not know it."""
        api_version, _, bare = kind.rpartition("/")
        candidates = (api_version,) if api_version else API_VERSIONS.get(bare, ())
        if not candidates:
            raise NotServedError(f"kind {kind} is not known to gateshift; write it as group/version/Kind")
        for candidate in candidates:
            found = self._discover(candidate).get(bare) or self._discover(candidate, anew=True).get(bare)
            if found is not None:
                return found
        raise NotServedError(f"the cluster does not serve {bare} ({' or '.join(candidates)})")

    def _resource_of(self, obj: Object) -> Resource:
        return self.resource(f"{obj['apiVersion']}/{obj['kind']}")

    def _discover(self, api_version: str, *, anew: bool = False) -> dict[str, Resource]:
        """Return the kinds of a group and version; *anew* asks again for one that was not among them.

        What is absent may appear later (CRDs are installed by us), also in a group that has others already.
        """
        with self._lock:
            known = self._served.get(api_version)
        if known is not None and not anew:
            return known
        if known is None and anew:
            return {}  # it was asked a moment ago and is not there at all
        group, slash, version = api_version.rpartition("/")
        group = group if slash else ""
        path = f"/apis/{group}/{version}" if group else f"/api/{version}"
        answer = self._optional("GET", path, f"discovery of {api_version}")
        served = {
            item["kind"]: Resource(group, version, item["kind"], item["name"], bool(item["namespaced"]))
            for item in (answer or {}).get("resources", [])
            if "/" not in item["name"]
        }
        if served:
            with self._lock:
                self._served[api_version] = served
        return served

    def _note(self, verb: str, resource: Resource) -> None:
        self.calls.add(Call(verb, resource.group, resource.plural))
