"""An API server at the wire: discovery, objects in memory, server-side apply, dry runs and refusals."""

from __future__ import annotations

import copy
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from gateshift.cluster.client import Cluster
from gateshift.cluster.objects import API_VERSIONS
from gateshift.cluster.permissions import covered
from gateshift.cluster.resources import Call
from gateshift.params.model import ClusterParams, Params

Object = dict[str, Any]

# Kinds that a test makes up to stand for a CRD that gateshift does not know.
UNLISTED = {
    Call("list", "cert-manager.io", "certificates"),
    Call("list", "db.example.com", "databases"),
    Call("list", "example.com", "widgets"),
    Call("list", "monitoring.coreos.com", "servicemonitors"),
}

_CLUSTERWIDE = {
    "Namespace",
    "Node",
    "StorageClass",
    "PersistentVolume",
    "IngressClass",
    "GatewayClass",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "ValidatingWebhookConfiguration",
    "MutatingWebhookConfiguration",
    "SelfSubjectAccessReview",
}
_PLURALS = {
    "Endpoints": "endpoints",
    "NetworkPolicy": "networkpolicies",
    "Ingress": "ingresses",
    "IngressClass": "ingressclasses",
    "GatewayClass": "gatewayclasses",
    "ApisixTls": "apisixtlses",
}


def plural(kind: str) -> str:
    low = kind.lower()
    if kind in _PLURALS:
        return _PLURALS[kind]
    return low[:-1] + "ies" if low.endswith("y") and not low.endswith("way") else low + "s"


class FakeApi:
    """State and knobs of the server.

    *refuse* returns (status, body) or (status, body, headers) to refuse a request, else None.
    """

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str, str], Object] = {}
        self.kinds = {(v, kind) for kind, versions in API_VERSIONS.items() for v in versions}
        self.kinds.add(("gateway.networking.k8s.io/v1", "Gateway"))
        self.denied: set[tuple[str, str]] = set()
        self.requests: list[tuple[str, str]] = []
        self.refuse: Callable[[str, str, Object], tuple[Any, ...] | None] = lambda *_: None
        self.logs: dict[str, str] = {}  # by pod; "pod/previous" is the container before its restart
        self.logged: dict[str, list[float]] = {}  # Unix seconds of each line of a log; now without them
        self.version = "v1.34.2"
        self.ahead = 0.0  # seconds by which the server's clock is ahead
        self._serial = 100
        self.lock = threading.RLock()

    def add(self, kind: str, name: str, namespace: str = "", **body: Any) -> Object:
        metadata = {
            "name": name,
            **({"namespace": namespace} if namespace else {}),
            **body.pop("metadata", {}),
        }
        obj = {"apiVersion": API_VERSIONS[kind][0], "kind": kind, "metadata": metadata, **body}
        return self.store(obj)

    def store(self, obj: Object) -> Object:
        with self.lock:
            self._serial += 1
            obj["metadata"].setdefault("uid", str(uuid.uuid4()))
            obj["metadata"]["resourceVersion"] = str(self._serial)
            self.objects[self.key(obj)] = obj
        return obj

    @staticmethod
    def key(obj: Object) -> tuple[str, str, str, str]:
        return (
            obj["apiVersion"],
            plural(obj["kind"]),
            obj["metadata"].get("namespace", ""),
            obj["metadata"].get("name", ""),
        )

    def find(self, kind: str, name: str, namespace: str = "") -> Object | None:
        return self.objects.get((API_VERSIONS[kind][0], plural(kind), namespace, name))


_PATH = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))"
    r"(?:/namespaces/(?P<ns>[^/]+)(?=/))?(?:/(?P<plural>[^/]+))?(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?$"
)


def _handler(api: FakeApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # head and body in one packet: else each answer waits for a delayed ACK

        def log_message(self, *_: object) -> None:
            pass

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string((timestamp or time.time()) + api.ahead)

        def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def _fail(self, status: int, message: str, **more: Any) -> None:
            self._answer(
                status, {"kind": "Status", "status": "Failure", "message": message, "code": status, **more}
            )

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            query = {k: v[0] for k, v in parse_qs(parts.query).items()}
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}") if length else {}
            api.requests.append((self.command, self.path))
            if refused := api.refuse(self.command, parts.path, body):
                self._answer(*refused)
                return
            if parts.path == "/version":
                self._answer(200, {"gitVersion": api.version})
                return
            if parts.path == "/apis":
                groups = sorted({v for v, _ in api.kinds if "/" in v}, reverse=True)
                preferred = {v.partition("/")[0]: v for v in groups}
                listed = [
                    {
                        "name": g,
                        "preferredVersion": {"groupVersion": v},
                        "versions": [{"groupVersion": one} for one in groups if one.partition("/")[0] == g],
                    }
                    for g, v in preferred.items()
                ]
                self._answer(200, {"groups": listed})
                return
            found = _PATH.match(parts.path)
            if not found:
                self._fail(404, "no such path")
                return
            version = found["core"] or f"{found['group']}/{found['version']}"
            if not found["plural"]:
                self._discover(version)
            elif found["sub"] == "log":
                self._log(found["name"], query)
            elif found["plural"] == "selfsubjectaccessreviews":
                asked = body["spec"]["resourceAttributes"]
                allowed = (asked["verb"], asked["resource"]) not in api.denied
                self._answer(201, {**body, "status": {"allowed": allowed}})
            else:
                with api.lock:
                    self._resource(version, found, query, body)

        def _log(self, pod: str, query: dict[str, str]) -> None:
            name = f"{pod}/previous" if query.get("previous") == "true" else pod
            if name != pod and name not in api.logs:
                self._fail(400, f'previous terminated container "x" in pod "{pod}" not found')
                return
            lines = api.logs.get(name, "").splitlines(keepends=True)
            times = api.logged.get(name) or [time.time()] * len(lines)
            since = time.time() - float(query.get("sinceSeconds", "1e10"))
            if query.get("timestamps") == "true":
                told = [datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ") for at in times]
                lines = [f"{at} {line}" for at, line in zip(told, lines, strict=True)]
            text = "".join(line for at, line in zip(times, lines, strict=True) if at >= since)
            self._answer(200, text.encode()[: int(query.get("limitBytes", 2**40))])

        def _discover(self, version: str) -> None:
            kinds = sorted(kind for v, kind in api.kinds if v == version)
            if not kinds:
                self._fail(404, "the server could not find the requested resource")
                return
            resources = [
                {"name": plural(k), "kind": k, "namespaced": k not in _CLUSTERWIDE, "verbs": ["list"]}
                for k in kinds
            ]
            self._answer(200, {"resources": resources})

        def _resource(self, version: str, found: re.Match[str], query: dict[str, str], body: Object) -> None:
            key = (version, found["plural"], found["ns"] or "", found["name"] or "")
            live = api.objects.get(key)
            dry = "dryRun" in query or "dryRun" in body
            match self.command:
                case "GET" if found["name"]:
                    self._answer(200, live) if live else self._fail(404, f"{key} not found")
                case "GET":
                    self._list(key, query)
                case "POST":
                    self._create(key, body)
                case "PUT":
                    wanted = body["metadata"].get("resourceVersion")
                    if live and wanted and wanted != live["metadata"]["resourceVersion"]:
                        self._fail(409, "the object has been modified")
                    else:
                        self._answer(200, api.store(body))
                case "PATCH":
                    self._apply(key, query, body, live, dry)
                case "DELETE":
                    self._delete(key, body, live, dry)

        def _delete(
            self, key: tuple[str, str, str, str], body: Object, live: Object | None, dry: bool
        ) -> None:
            uid = body.get("preconditions", {}).get("uid")
            if live is None:
                self._fail(404, "not found")
            elif uid and uid != live["metadata"]["uid"]:
                self._fail(409, "the UID in the precondition does not match")
            else:
                if not dry and live["metadata"].get("finalizers"):
                    live["metadata"].setdefault("deletionTimestamp", "2026-11-30T00:00:00Z")
                elif not dry:
                    del api.objects[key]
                self._answer(200, {"status": "Success"})

        def _list(self, key: tuple[str, str, str, str], query: dict[str, str]) -> None:
            wanted = dict(p.split("=", 1) for p in query.get("labelSelector", "").split(",") if p)
            items = [
                o
                for k, o in sorted(api.objects.items())
                if k[:2] == key[:2]
                and key[2] in {"", k[2]}
                and wanted.items() <= (o["metadata"].get("labels") or {}).items()
            ]
            start = int(query.get("continue", 0))
            size = min(int(query.get("limit", 500)), 3)  # small pages, so that paging is always exercised
            more = {"continue": str(start + size)} if start + size < len(items) else {}
            bare = [{k: v for k, v in o.items() if k not in {"apiVersion", "kind"}} for o in items]
            self._answer(200, {"metadata": more, "items": bare[start : start + size]})

        def _create(self, key: tuple[str, str, str, str], body: Object) -> None:
            if api.objects.get((*key[:3], body["metadata"]["name"])):
                self._fail(409, f"{body['metadata']['name']} already exists")
            else:
                made = copy.deepcopy(body)
                if key[1] == "customresourcedefinitions":
                    made["status"] = {"conditions": [{"type": "Established", "status": "True"}]}
                self._answer(201, api.store(made))

        def _apply(
            self,
            key: tuple[str, str, str, str],
            query: dict[str, str],
            body: Object,
            live: Object | None,
            dry: bool,
        ) -> None:
            manager = query["fieldManager"]
            owners = (live or {}).get("owners", {})
            foreign = {
                field: owner
                for field, owner in owners.items()
                if owner != manager
                and field in body.get("spec", {})
                and live
                and body["spec"][field] != live["spec"].get(field)
            }
            if foreign and query.get("force") != "true":
                causes = [
                    {
                        "reason": "FieldManagerConflict",
                        "field": f".spec.{f}",
                        "message": f'conflict with "{o}"',
                    }
                    for f, o in foreign.items()
                ]
                self._fail(409, "Apply failed with conflicts", details={"causes": causes})
                return
            merged = copy.deepcopy(live) if live else {}
            managed = [
                m for m in merged.get("metadata", {}).get("managedFields", []) if m["manager"] != manager
            ]
            for section, value in copy.deepcopy(body).items():
                merged[section] = {**merged.get(section, {}), **value} if isinstance(value, dict) else value
            known = {m["manager"] for m in (live or {}).get("metadata", {}).get("managedFields", [])}
            if manager not in known or not live or live.get("spec") != merged.get("spec"):
                managed.append({"manager": manager, "operation": "Apply", "time": f"t{len(api.requests)}"})
                merged["metadata"]["managedFields"] = managed
            if dry:
                self._answer(200, merged)
            elif live and live == merged:
                self._answer(200, live)
            else:
                self._answer(200, api.store(merged))

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # preflight opens dozens of connections at once; the default of 5 resets some


@pytest.fixture
def api() -> FakeApi:
    found = FakeApi()
    found.add("Namespace", "kube-system", metadata={"uid": "cluster-uid"})
    return found


@pytest.fixture
def server(api: FakeApi) -> Iterator[str]:
    httpd = _Server(("127.0.0.1", 0), _handler(api))
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def kubeconfig(server: str, tmp_path: Path) -> str:
    path = tmp_path / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "secret-token"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(config))
    return str(path)


@pytest.fixture
def cluster(kubeconfig: str) -> Iterator[Cluster]:
    """A client whose every call must be in the permissions table: a missing one fails the test at hand."""
    found = Cluster.connect(ClusterParams(kubeconfig=kubeconfig), timeout=3)
    yield found
    assert not covered(found.calls - UNLISTED), "calls that permissions.TABLE lacks"


def make_params(kubeconfig: str = "", **sections: Any) -> Params:
    data: dict[str, Any] = {
        "migration": "test",
        "environment": "lab",
        "cluster": {"kubeconfig": kubeconfig or None, "application_namespace": "shop", "uid": "cluster-uid"},
        "apisix": {"files": ["apisix.yaml"]},
        "istio": {"version": "1.31.0", "ready_timeout": "2s"},
        "traffic": {"route53": {"zone": "shop.com", "hosts": ["api.shop.com"]}},
        "metrics": {"url": "http://127.0.0.1:9"},
        "stages": [{"weight_percent": 100, "dwell": "1s", "error_rate_limit_percent": 1.0}],
    }
    for section, values in sections.items():
        data[section] = {**data.get(section, {}), **values} if isinstance(values, dict) else values
    return Params.model_validate(data)


@pytest.fixture
def params(kubeconfig: str) -> Params:
    return make_params(kubeconfig)
