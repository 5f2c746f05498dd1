"""Healthy objects as operators write them, after Istio's own documentation: the lint calls none an error."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from gateshift.diagnose.lint import lint

NET, SEC = "networking.istio.io/v1", "security.istio.io/v1"

HEALTHY: dict[str, str] = {
    "two gateways, each of its own workload and namespace": f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: istio-ingressgateway, namespace: istio-system}}
spec: {{template: {{metadata: {{labels: {{istio: ingressgateway}}}}}}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: internal-gateway, namespace: istio-internal}}
spec: {{template: {{metadata: {{labels: {{istio: internal}}}}}}}}
---
apiVersion: v1
kind: Secret
metadata: {{name: internal-cert, namespace: istio-internal}}
---
apiVersion: {NET}
kind: Gateway
metadata: {{name: internal, namespace: shop}}
spec:
  selector: {{istio: internal}}
  servers:
  - port: {{number: 443, name: https, protocol: HTTPS}}
    hosts: [internal.example.com]
    tls: {{mode: SIMPLE, credentialName: internal-cert}}
""",
    "a gateway that runs as a DaemonSet": f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: istio-egressgateway, namespace: istio-system}}
spec: {{template: {{metadata: {{labels: {{istio: egressgateway}}}}}}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: istio-ingressgateway, namespace: istio-system}}
spec: {{template: {{metadata: {{labels: {{istio: ingressgateway}}}}}}}}
---
apiVersion: {NET}
kind: Gateway
metadata: {{name: gw, namespace: shop}}
spec:
  selector: {{istio: ingressgateway}}
  servers: [{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: ["*"]}}]
""",
    "objects without a namespace, applied with -n": f"""
apiVersion: {NET}
kind: Gateway
metadata: {{name: bookinfo-gateway}}
spec:
  selector: {{istio: ingressgateway}}
  servers: [{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: ["*"]}}]
---
apiVersion: {NET}
kind: VirtualService
metadata: {{name: bookinfo}}
spec:
  hosts: ["*"]
  gateways: [bookinfo/bookinfo-gateway]
  http: [{{match: [{{uri: {{exact: /productpage}}}}], route: [{{destination: {{host: productpage}}}}]}}]
""",
    "subsets whose DestinationRule is in another file": f"""
apiVersion: {NET}
kind: VirtualService
metadata: {{name: reviews, namespace: bookinfo}}
spec: {{hosts: [reviews], http: [{{route: [{{destination: {{host: reviews, subset: v1}}}}]}}]}}
""",
    "subsets of a DestinationRule for a wildcard": f"""
apiVersion: {NET}
kind: VirtualService
metadata: {{name: reviews, namespace: bookinfo}}
spec:
  hosts: [reviews.bookinfo.svc.cluster.local]
  http: [{{route: [{{destination: {{host: reviews.bookinfo.svc.cluster.local, subset: v1}}}}]}}]
---
apiVersion: {NET}
kind: DestinationRule
metadata: {{name: all, namespace: bookinfo}}
spec: {{host: "*.bookinfo.svc.cluster.local", subsets: [{{name: v1, labels: {{version: v1}}}}]}}
""",
    "subsets of a ServiceEntry": f"""
apiVersion: {NET}
kind: ServiceEntry
metadata: {{name: api, namespace: shop}}
spec: {{hosts: [api.pay.example], ports: [{{number: 443, name: tls, protocol: TLS}}], resolution: DNS}}
---
apiVersion: {NET}
kind: DestinationRule
metadata: {{name: api, namespace: shop}}
spec: {{host: api.pay.example, subsets: [{{name: eu, labels: {{region: eu}}}}]}}
---
apiVersion: {NET}
kind: VirtualService
metadata: {{name: api, namespace: shop}}
spec:
  hosts: [api.pay.example]
  http: [{{route: [{{destination: {{host: api.pay.example, subset: eu}}}}]}}]
""",
    "values of Envoy in headers, digits and parentheses in their names": f"""
apiVersion: {NET}
kind: VirtualService
metadata: {{name: v, namespace: shop}}
spec:
  hosts: [a.example]
  http:
  - route: [{{destination: {{host: cart}}}}]
    headers:
      request:
        set:
          x-client-cert: "%DOWNSTREAM_PEER_FINGERPRINT_256%"
          x-size: "%CEL(request.headers['x'].size())%"
          x-time: "%START_TIME(%s.%3f)%"
          x-route: "a %ROUTE_NAME% b 100%% c"
""",
    "header keys in capitals, which Envoy matches without regard to case": f"""
apiVersion: {NET}
kind: VirtualService
metadata: {{name: v, namespace: shop}}
spec:
  hosts: [a.example]
  http:
  - match: [{{headers: {{X-Beta: {{exact: "1"}}, method: {{exact: fast}}}}}}]
    route: [{{destination: {{host: cart}}}}]
""",
    "named groups": f"""
apiVersion: {NET}
kind: VirtualService
metadata: {{name: v, namespace: shop}}
spec:
  hosts: [a.example]
  http:
  - match: [{{uri: {{regex: "/v(?P<n>[0-9]+)/.*"}}}}, {{uri: {{regex: "/w(?<n>[0-9]+)"}}}}]
    route: [{{destination: {{host: cart}}}}]
""",
    "claims that only choose a route": f"""
apiVersion: {SEC}
kind: RequestAuthentication
metadata: {{name: ingress-jwt, namespace: istio-system}}
spec:
  selector: {{matchLabels: {{istio: ingressgateway}}}}
  jwtRules: [{{issuer: "testing@secure.istio.io", jwksUri: "https://example.com/jwks.json"}}]
---
apiVersion: {NET}
kind: VirtualService
metadata: {{name: v, namespace: shop}}
spec:
  hosts: ["*"]
  gateways: [gw]
  http:
  - match: [{{headers: {{"@request.auth.claims.groups": {{exact: group1}}}}}}]
    route: [{{destination: {{host: cart}}}}]
""",
    "tokens required by the policy of the whole mesh": f"""
apiVersion: {SEC}
kind: RequestAuthentication
metadata: {{name: jwt, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: cart}}}}
  jwtRules: [{{issuer: i, jwksUri: "https://example.com/jwks.json"}}]
---
apiVersion: {SEC}
kind: AuthorizationPolicy
metadata: {{name: require, namespace: istio-system}}
spec: {{action: DENY, rules: [{{from: [{{source: {{notRequestPrincipals: ["*"]}}}}]}}]}}
""",
    "providers, quoted and built in": f"""
apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data:
  mesh: |
    accessLogFile: /dev/stdout
    extensionProviders:
    - {{"name": "ext-authz", "envoyExtAuthzGrpc": {{"service": "a.b", "port": 9000}}}}
    - name: 'otel'
---
apiVersion: {SEC}
kind: AuthorizationPolicy
metadata: {{name: ext, namespace: shop}}
spec: {{action: CUSTOM, provider: {{name: ext-authz}}, rules: [{{}}]}}
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {{name: t, namespace: shop}}
spec: {{tracing: [{{randomSamplingPercentage: 5, providers: [{{name: otel}}, {{name: stackdriver}}]}}]}}
""",
    "two control planes, the provider in the newer one": f"""
apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data: {{mesh: "accessLogFile: /dev/stdout"}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: istio-1-31, namespace: istio-system}}
data: {{mesh: "extensionProviders: [{{name: ext}}]"}}
---
apiVersion: {SEC}
kind: AuthorizationPolicy
metadata: {{name: ext, namespace: shop}}
spec: {{action: CUSTOM, provider: {{name: ext}}, rules: [{{}}]}}
""",
    "Lua that speaks of nginx and geoip, with a module of its own": """
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: lua, namespace: istio-system}
spec:
  workloadSelector: {labels: {istio: ingressgateway}}
  configPatches:
  - applyTo: HTTP_FILTER
    match: {context: GATEWAY}
    patch:
      operation: INSERT_BEFORE
      value:
        name: lua.geoip
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
          inline_code: |
            local json = require("lib.json")
            function envoy_on_request(h) h:headers():add("x-geoip", h:headers():get("x-custom_response")) end
""",
    "a limit of connections, which has no percentages": """
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: connections, namespace: istio-system}
spec:
  workloadSelector: {labels: {istio: ingressgateway}}
  configPatches:
  - applyTo: NETWORK_FILTER
    match: {context: GATEWAY}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.network.local_ratelimit
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit
          stat_prefix: connections
          token_bucket: {max_tokens: 1000, fill_interval: 1s}
""",
    "kinds of other APIs that have the same name": """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: shop}
spec:
  gatewayClassName: istio
  listeners: [{name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c}]}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: shop}
spec: {hosts: [a.example], gateways: [infra/gw], http: [{route: [{destination: {host: cart}}]}]}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {template: {}}
---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {name: p, namespace: istio-system}
spec: {targetRef: {kind: Server}}
""",
    "two authorizers, each of its own workload, before Istio 1.30": f"""
apiVersion: {SEC}
kind: AuthorizationPolicy
metadata: {{name: a, namespace: shop}}
spec: {{action: CUSTOM, selector: {{matchLabels: {{app: a}}}}, provider: {{name: one}}, rules: [{{}}]}}
---
apiVersion: {SEC}
kind: AuthorizationPolicy
metadata: {{name: b, namespace: shop}}
spec: {{action: CUSTOM, selector: {{matchLabels: {{app: b}}}}, provider: {{name: two}}, rules: [{{}}]}}
""",
    "objects that leave out all that may be left out": f"""
apiVersion: {SEC}
kind: PeerAuthentication
metadata: {{name: default, namespace: shop}}
---
apiVersion: {NET}
kind: VirtualService
metadata: {{name: v, namespace: shop, labels: null, annotations: null}}
spec: {{hosts: [a.example], gateways: null, http: [{{match: null, route: null}}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: gateway, namespace: istio-system}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data: {{mesh: "accessLogFile: /dev/stdout"}}
---
apiVersion: {NET}
kind: Gateway
metadata: {{name: gw, namespace: shop}}
spec: {{servers: [{{port: {{number: 443, protocol: TLS}}, hosts: null, tls: {{mode: PASSTHROUGH}}}}]}}
---
apiVersion: {SEC}
kind: AuthorizationPolicy
metadata: {{name: nothing, namespace: shop}}
spec: null
""",
}


@pytest.mark.parametrize("what", HEALTHY)
@pytest.mark.parametrize("version", ["1.29", "1.31"])
def test_healthy_objects_are_no_error(what: str, version: str) -> None:
    objects: list[dict[str, Any]] = list(yaml.safe_load_all(HEALTHY[what]))
    assert [(c.code, c.title) for c in lint(objects, version=version) if c.level == "error"] == []


def test_a_gateway_of_the_gateway_api_needs_no_virtual_service() -> None:
    objects = list(yaml.safe_load_all(HEALTHY["kinds of other APIs that have the same name"]))
    assert [c.title for c in lint(objects) if "Gateway" in c.evidence and c.level != "info"] == []
