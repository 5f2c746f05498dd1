"""Ingress objects as the APISIX routes that the ingress controller (2.x) writes for them.

What the annotations do is taken from the controller's own parsers: an annotation that one cannot read has no
effect there, and is reported here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gateshift.apisix.model import Kind, Origin
from gateshift.apisix.readers.builder import Builder
from gateshift.apisix.readers.crd_upstream import service_nodes
from gateshift.apisix.readers.manifest import Manifest, objects_of

__all__ = ["is_ours", "read"]

PREFIX = "k8s.apisix.apache.org/"
_CONTROLLER = "apisix.apache.org/apisix-ingress-controller"
_SCHEMES = ("http", "https", "grpc", "grpcs")
_TIMEOUTS = ("connect", "read", "send")
_DEFAULT_TIMEOUT = 60
_KNOWN = frozenset(
    {
        "ingress.class", "use-regex", "enable-websocket", "plugin-config-name", "svc-namespace",
        "upstream-scheme", "upstream-retries", "upstream-connect-timeout", "upstream-read-timeout",
        "upstream-send-timeout", "enable-cors", "cors-allow-origin", "cors-allow-headers",
        "cors-allow-methods", "enable-csrf", "csrf-key", "http-to-https", "http-redirect",
        "http-redirect-code", "rewrite-target", "rewrite-target-regex", "rewrite-target-regex-template",
        "enable-response-rewrite", "response-rewrite-status-code", "response-rewrite-body",
        "response-rewrite-body-base64", "response-rewrite-add-header", "response-rewrite-set-header",
        "response-rewrite-remove-header", "auth-uri", "auth-ssl-verify", "auth-request-headers",
        "auth-upstream-headers", "auth-client-headers", "allowlist-source-range",
        "blocklist-source-range", "http-allow-methods", "http-block-methods", "auth-type",
    }
)  # fmt: skip


def is_ours(controller: object) -> bool:
    """Tell whether an IngressClass with this controller belongs to APISIX."""
    return str(controller).startswith(_CONTROLLER)


def read(manifest: Manifest, builder: Builder, classes: Collection[str]) -> None:
    """Read one Ingress. *classes* are the names of APISIX's IngressClasses, when the input has any."""
    if not _belongs(manifest, builder, classes):
        return
    notes = _Notes(manifest, builder)
    for i, tls in enumerate(objects_of(manifest.spec.get("tls"), "tls")):
        if isinstance(tls, Mapping) and tls.get("secretName"):
            _certificate(manifest, tls, i, builder)
    if manifest.spec.get("defaultBackend"):
        builder.warn(manifest.at("defaultBackend"), "APISIX's controller does not serve a default backend")
    for i, rule in enumerate(objects_of(manifest.spec.get("rules"), "rules")):
        http = rule.get("http") if isinstance(rule, Mapping) else None
        paths = objects_of(http.get("paths"), "paths") if isinstance(http, Mapping) else []
        for j, path in enumerate(paths):
            where = manifest.at(f"rules[{i}].http.paths[{j}]")
            known: Mapping[str, Any] = path if isinstance(path, Mapping) else {}
            backend = known.get("backend")
            service = backend.get("service") if isinstance(backend, Mapping) else None
            if not isinstance(rule, Mapping) or not isinstance(service, Mapping):
                builder.error(where, "a path without a backend Service: the controller leaves it out")
                continue
            id_ = f"{manifest.id}_{i}-{j}"
            host = str(rule.get("host") or "").lower()
            spec = {"id": id_, "name": id_, **({"hosts": [host]} if host else {}), **_path(known, notes)}
            builder.add(Kind.ROUTE, id_, spec | _forwarding(service, manifest, notes), where)


def _forwarding(service: Mapping[str, Any], manifest: Manifest, notes: _Notes) -> dict[str, Any]:
    spec: dict[str, Any] = {"enable_websocket": True} if notes.on("enable-websocket") else {}
    spec["upstream"] = _upstream(service, manifest, notes)
    if notes.text("plugin-config-name"):
        spec["plugin_config_id"] = f"{manifest.namespace}_{notes.text('plugin-config-name')}"
    plugins = _plugins(notes)
    return spec | ({"plugins": plugins} if plugins else {})


def _belongs(manifest: Manifest, builder: Builder, classes: Collection[str]) -> bool:
    name = manifest.spec.get("ingressClassName")
    for key in ("kubernetes.io/ingress.class", f"{PREFIX}ingress.class"):
        name = name or manifest.annotations.get(key)
    if name is None:
        builder.warn(
            manifest.origin,
            "the Ingress names no class; it was read as APISIX's, which has to be the default class",
            "write ingressClassName",
        )
        return True
    if str(name) in classes or (not classes and "apisix" in str(name)):
        return True
    builder.warn(manifest.origin, f"the Ingress is of class {name}, not APISIX's: it was not read")
    return False


class _Notes:
    """The controller's annotations of one Ingress, read by its rules."""

    def __init__(self, manifest: Manifest, builder: Builder) -> None:
        self._values = {
            key.removeprefix(PREFIX): value
            for key, value in manifest.annotations.items()
            if key.startswith(PREFIX)
        }
        self._origin, self._builder = manifest.origin, builder
        for key in sorted(set(self._values) - _KNOWN):
            builder.lose(
                self.at(key),
                f"{manifest.kind}/{manifest.namespace}/{manifest.name}",
                f"annotation {PREFIX}{key} is not known here",
                "remove it if the controller does not know it either, or sign for it",
            )

    def at(self, key: str) -> Origin:
        return Origin(self._origin.source, f"{self._origin.path}.metadata.annotations[{PREFIX}{key}]")

    def refuse(self, key: str, why: str) -> None:
        self._builder.error(self.at(key), f"{why}: the controller ignores it", "correct or remove it")

    def text(self, key: str) -> str:
        return self._values.get(key, "")

    def list(self, key: str) -> list[str]:
        return self.text(key).split(",") if self.text(key) else []

    def on(self, key: str) -> bool:
        return self.text(key) == "true"

    def number(self, key: str) -> int:
        text = self.text(key).removesuffix("s") if key.endswith("timeout") else self.text(key)
        return int(text or 0)


def _path(path: Mapping[str, Any], notes: _Notes) -> dict[str, Any]:
    value = str(path.get("path") or "/")
    kind = path.get("pathType")
    if kind == "Prefix":
        return {"uris": [value, value.removesuffix("/") + "/*"]}
    if kind == "ImplementationSpecific" and notes.on("use-regex"):
        return {"uris": ["/*"], "vars": [["uri", "~~", value]]}
    return {"uris": [value]}


def _upstream(service: Mapping[str, Any], manifest: Manifest, notes: _Notes) -> dict[str, Any]:
    raw = service.get("port")
    port = (raw.get("number") or raw.get("name")) if isinstance(raw, Mapping) else None
    space = notes.text("svc-namespace") or manifest.namespace
    return {
        "type": "roundrobin",
        **service_nodes(str(service.get("name")), space, port or 80, weight=1),
        **_settings(notes),
    }


def _settings(notes: _Notes) -> dict[str, Any]:
    """Return scheme, retries and timeouts; one that cannot be read makes the controller drop them all."""
    scheme = notes.text("upstream-scheme").lower()
    if scheme and scheme not in _SCHEMES:
        notes.refuse("upstream-scheme", f"{scheme} is no scheme of an upstream")
        return {}
    numbers: dict[str, int] = {}
    for key in ("upstream-retries", *(f"upstream-{one}-timeout" for one in _TIMEOUTS)):
        try:
            numbers[key] = notes.number(key)
        except ValueError:
            notes.refuse(key, f"{notes.text(key)!r} is no number")
            return {}
    found: dict[str, Any] = {"scheme": scheme} if scheme else {}
    if numbers["upstream-retries"] > 0:
        found["retries"] = numbers["upstream-retries"]
    times = {one: numbers[f"upstream-{one}-timeout"] for one in _TIMEOUTS}
    if any(one > 0 for one in times.values()):
        found["timeout"] = {one: value or _DEFAULT_TIMEOUT for one, value in times.items()}
    return found


def _plugins(notes: _Notes) -> dict[str, Any]:
    made = {
        "cors": _cors(notes),
        "csrf": _csrf(notes),
        "redirect": _redirect(notes),
        "proxy-rewrite": _rewrite(notes),
        "response-rewrite": _response(notes),
        "forward-auth": _forward(notes),
        "ip-restriction": _filled(
            whitelist=notes.list("allowlist-source-range"), blacklist=notes.list("blocklist-source-range")
        ),
        "fault-injection": _methods(notes),
    }
    found = {name: config for name, config in made.items() if config}
    kind = notes.text("auth-type")
    if kind in ("keyAuth", "basicAuth"):
        found["key-auth" if kind == "keyAuth" else "basic-auth"] = {}
    elif kind:
        notes.refuse("auth-type", f"{kind} is neither keyAuth nor basicAuth")
    return found


def _filled(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value}


def _cors(notes: _Notes) -> dict[str, Any]:
    if not notes.on("enable-cors"):
        return {}
    parts = _filled(
        allow_origins=notes.text("cors-allow-origin"),
        allow_methods=notes.text("cors-allow-methods"),
        allow_headers=notes.text("cors-allow-headers"),
    )
    return parts or {"allow_origins": "*"}  # the plugin's own default: an empty one would be left out here


def _csrf(notes: _Notes) -> dict[str, Any]:
    if notes.on("enable-csrf") and not notes.text("csrf-key"):
        notes.refuse("enable-csrf", "csrf without csrf-key")
    return _filled(key=notes.text("csrf-key")) if notes.on("enable-csrf") else {}


def _redirect(notes: _Notes) -> dict[str, Any]:
    if notes.on("http-to-https"):
        return {"http_to_https": True}
    if not notes.text("http-redirect"):
        return {}
    code = notes.text("http-redirect-code")
    allowed = code.isdigit() and 301 <= int(code) <= 308
    return {"uri": notes.text("http-redirect"), "ret_code": int(code) if allowed else 301}


def _rewrite(notes: _Notes) -> dict[str, Any]:
    pair = [notes.text("rewrite-target-regex"), notes.text("rewrite-target-regex-template")]
    if any(pair) and not all(pair):
        notes.refuse("rewrite-target-regex", "regex and template only work together")
    return _filled(uri=notes.text("rewrite-target"), regex_uri=pair if all(pair) else [])


def _response(notes: _Notes) -> dict[str, Any]:
    if not notes.on("enable-response-rewrite"):
        return {}
    code = notes.text("response-rewrite-status-code")
    pairs = (one.partition(":") for one in notes.list("response-rewrite-set-header"))
    return _filled(
        status_code=int(code) if code.isdigit() else 0,
        body=notes.text("response-rewrite-body"),
        body_base64=notes.on("response-rewrite-body-base64"),
        headers=_filled(
            add=notes.list("response-rewrite-add-header"),
            set={name: value for name, colon, value in pairs if colon},
            remove=notes.list("response-rewrite-remove-header"),
        ),
    )


def _forward(notes: _Notes) -> dict[str, Any]:
    if not notes.text("auth-uri"):
        return {}
    return {
        "uri": notes.text("auth-uri"),
        "ssl_verify": notes.text("auth-ssl-verify") != "false",
        **_filled(
            request_headers=notes.list("auth-request-headers"),
            upstream_headers=notes.list("auth-upstream-headers"),
            client_headers=notes.list("auth-client-headers"),
        ),
    }


def _methods(notes: _Notes) -> dict[str, Any]:
    allowed, blocked = notes.list("http-allow-methods"), notes.list("http-block-methods")
    if not allowed and not blocked:
        return {}
    test = ["request_method", "!", "in", allowed] if allowed else ["request_method", "in", blocked]
    return {"abort": {"http_status": 405, "vars": [[test]]}}


def _certificate(manifest: Manifest, tls: Mapping[str, Any], i: int, builder: Builder) -> None:
    hosts = [str(one).lower() for one in objects_of(tls.get("hosts"), "hosts")]
    if not hosts:
        builder.lose(
            manifest.at(f"tls[{i}]"),
            f"{manifest.kind}/{manifest.namespace}/{manifest.name}",
            "the certificate's hosts stand only in the Secret",
            "write the hosts into the Ingress, or sign that nothing is served by this certificate",
        )
        return
    where = f"$secret://kubernetes/{manifest.namespace}/{tls['secretName']}"
    id_ = f"{manifest.id}_tls_{i}"
    spec = {"id": id_, "snis": hosts, "cert": f"{where}/tls.crt", "key": f"{where}/tls.key"}
    builder.add(Kind.SSL, id_, spec, manifest.at(f"tls[{i}]"))
