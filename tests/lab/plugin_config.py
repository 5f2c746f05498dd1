"""One APISIX configuration with every plugin that is converted, each on a host of its own."""

from __future__ import annotations

import base64
import socket
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gateshift.apisix.model import Configuration, Kind, Origin, Resource, Router
from gateshift.lab import topology
from gateshift.params.model import TranslateParams
from gateshift.translate import Target, Translation, translate
from tests.translate.helpers import signed

NAMESPACE = topology.APPLICATION_NAMESPACE
ISSUER, OIDC_ISSUER = "https://issuer.test", "https://oidc.test"
OWN_ISSUER = "https://own.test"  # of the consumer boss alone
API_KEY, OTHER_KEY = "a-long-and-random-key-1", "a-long-and-random-key-2"
BASIC = base64.b64encode(b"pay:correct horse battery").decode()
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OWN_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _public(key: rsa.RSAPrivateKey) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


PUBLIC = _public(KEY)
PROTO = """
syntax = "proto3";
package identity.v1;
message GetUserRequest { string id = 1; }
message User { string id = 1; string name = 2; string email = 3; string gateway = 4; }
service Identity { rpc GetUser(GetUserRequest) returns (User); }
"""


def service(name: str, port: int = 8000) -> str:
    return f"{name}.{NAMESPACE}.svc.cluster.local:{port}"


def upstream(name: str = "echo", **more: Any) -> dict[str, Any]:
    return {"type": "roundrobin", "nodes": {service(name): 1}, **more}


def _per_second(rate: float, **more: Any) -> dict[str, Any]:
    return {"rate": rate, "burst": 0, "rejected_code": 429, "key_type": "constant", "key": "all", **more}


DISCOVERY = "http://idp.test/.well-known/openid-configuration"
LOGIN = {
    "client_id": "shop",
    "client_secret": "stays in a Secret",
    "discovery": DISCOVERY,
    "redirect_uri": "/callback",
    "scope": "openid email",
    "session": {"secret": "of APISIX alone, unused here"},
}
STRIP = """
local spoofed = {"x-user-id", "x-tenant"} -- never from clients
return function()
  for _, h in ipairs(spoofed) do ngx.req.clear_header(h) end
end
"""
ACTIVE = {
    "http_path": "/healthz",
    "timeout": 5,
    "healthy": {"interval": 1, "successes": 2},
    "unhealthy": {"interval": 1, "http_failures": 2, "tcp_failures": 2, "timeouts": 2},
}
FUNCTION = f"http://{service('echo')}"
PLUGINS: dict[str, dict[str, Any]] = {
    "plain": {},
    "idp": {},
    "mtls": {},
    "mtls-none": {},
    "passive": {},
    "active": {},
    "active-tls": {},
    "cors": {
        "cors": {
            "allow_origins": "https://app.test",
            "allow_methods": "GET,POST",
            "allow_headers": "x-a",
            "expose_headers": "x-b",
            "allow_credential": True,
            "max_age": 60,
        }
    },
    "cors-any": {"cors": {}, "key-auth": {}},
    "rewrite": {
        "proxy-rewrite": {
            "uri": "/new",
            "host": "inner.test",
            "headers": {"set": {"X-Set": "50%", "X-From": "$remote_addr"}, "remove": ["X-Gone"]},
        }
    },
    "rewrite-regex": {"proxy-rewrite": {"regex_uri": ["/v1/", "/v2/"]}},
    "rewrite-many": {"proxy-rewrite": {"regex_uri": ["^/a/(.*)", "/A/$1", "^/b/(.*)", "/B/$1"]}},
    "rewrite-vars": {"proxy-rewrite": {"uri": "/for/$remote_addr?fixed=1"}},
    "rewrite-encoded": {"proxy-rewrite": {"uri": "/f r/é/$arg_a?fixed=1"}},
    "rewrite-uri": {"proxy-rewrite": {"uri": "/v2$uri"}},
    "hosts": {},
    "hosts-split": {
        "traffic-split": {
            "rules": [
                {
                    "match": [{"vars": [["http_x_beta", "==", "1"]]}],
                    "weighted_upstreams": [
                        {
                            "upstream": upstream("second", pass_host="rewrite", upstream_host="canary.test"),
                            "weight": 1,
                        }
                    ],
                }
            ]
        }
    },
    "rewrite-method": {"proxy-rewrite": {"method": "PUT"}},
    "answer-headers": {
        "response-rewrite": {
            "headers": {
                "set": {"X-Set": "$request_uri", "X-Path": "$uri"},
                "add": ["X-Add: 1"],
                "remove": ["X-Backend"],
            }
        }
    },
    "answer-body": {
        "response-rewrite": {
            "status_code": 418,
            "body": '{"short":"and stout"}',
            "headers": {"set": {"content-type": "application/json"}},
            "vars": [["status", "==", 500]],
        }
    },
    "answer-filter": {
        "response-rewrite": {"filters": [{"regex": "echo", "scope": "global", "replace": "secret"}]}
    },
    "redirect": {"redirect": {"uri": "/elsewhere", "ret_code": 307}},
    "redirect-query": {"redirect": {"uri": "https://other.test/x", "append_query_string": True}},
    "redirect-regex": {"redirect": {"regex_uri": ["^/old/(.*)$", "/young/$1"], "ret_code": 301}},
    "redirect-away": {
        "redirect": {
            "regex_uri": ["^/old(/.*)$", "https://new.test$1"],
            "ret_code": 308,
            "append_query_string": True,
        }
    },
    "redirect-constant": {"redirect": {"regex_uri": ["^/old/.*", "https://new.test/a?b=c"]}},
    "redirect-host": {"redirect": {"uri": "https://www.other.test$request_uri", "ret_code": 308}},
    "redirect-https": {"redirect": {"http_to_https": True}},
    "mocking": {
        "mocking": {
            "response_status": 201,
            "response_example": '{"mock":true}',
            "response_headers": {"X-M": "1"},
        }
    },
    "abort": {"fault-injection": {"abort": {"http_status": 503, "body": "broken", "headers": {"X-F": "1"}}}},
    "abort-vars": {
        "fault-injection": {
            "abort": {"http_status": 409, "percentage": 100, "vars": [[["arg_n", "==", "1"]]]}
        }
    },
    "delay": {"fault-injection": {"delay": {"duration": 0.3}}},
    "addresses": {"ip-restriction": {"whitelist": ["10.0.0.0/8"]}},
    "addresses-open": {"ip-restriction": {"whitelist": ["127.0.0.0/8"]}},
    "agents": {"ua-restriction": {"denylist": ["[Bb]ot", "curl"], "message": "no robots"}},
    "agents-allowed": {"ua-restriction": {"allowlist": ["^Good"], "bypass_missing": False}},
    "referers": {"referer-restriction": {"whitelist": ["good.test", "*.fine.test"]}},
    "uris": {"uri-blocker": {"block_rules": ["root\\.exe", "select.+from"], "case_insensitive": True}},
    "size": {"client-control": {"max_body_size": 100}},
    "key": {"key-auth": {"hide_credentials": True}},
    "basic": {"basic-auth": {"hide_credentials": True}},
    "jwt": {"jwt-auth": {}, "cors": {"allow_origins": "https://app.test"}},
    "jwt-some": {"jwt-auth": {}, "consumer-restriction": {"whitelist": ["web"]}},
    "key-some": {
        "key-auth": {},
        "consumer-restriction": {
            "whitelist": ["pay"],
            "allowed_by_methods": [{"user": "pay", "methods": ["GET"]}],
            "rejected_msg": "not you",
        },
    },
    "bearer": {
        "openid-connect": {
            "client_id": "app",
            "client_secret": "never-needed",
            "bearer_only": True,
            "discovery": f"{OIDC_ISSUER}/.well-known/openid-configuration",
            "public_key": PUBLIC,
            "required_scopes": ["read"],
        }
    },
    "login": {"openid-connect": LOGIN},
    "login-deny": {"openid-connect": {**LOGIN, "unauth_action": "deny"}},
    "forward": {
        "forward-auth": {
            "uri": f"http://{service('echo')}/check?x=1",
            "request_headers": ["Authorization"],
            "upstream_headers": ["X-User"],
            "client_headers": ["X-Why"],
            "timeout": 10000,
        }
    },
    "forward-down": {"forward-auth": {"uri": f"http://{service('echo')}/hang", "timeout": 300}},
    "forward-nowhere": {"forward-auth": {"uri": f"http://{service('nobody')}/check"}},
    "opa": {
        "opa": {
            "host": f"http://{service('echo')}",
            "policy": "example",
            "send_headers_upstream": ["X-Role"],
            "timeout": 9000,
        }
    },
    "rate": {"limit-req": _per_second(0.01, burst=1)},
    "count": {
        "limit-count": {
            "count": 2,
            "time_window": 60,
            "rejected_code": 403,
            "key_type": "var",
            "key": "http_x_client",
        }
    },
    "rate-shared": {
        "limit-count": {
            "count": 3,
            "time_window": 60,
            "rejected_code": 429,
            "policy": "redis",
            "redis_host": "redis",
            "redis_timeout": 5000,
            "key": "remote_addr",
        }
    },
    "breaker": {"api-breaker": {"break_response_code": 502, "unhealthy": {"failures": 3}}},
    "connections": {"limit-conn": {"conn": 50, "burst": 0, "key_type": "constant", "key": "all"}},
    "workflow": {
        "workflow": {
            "rules": [
                {"case": [["uri", "==", "/hidden"]], "actions": [["return", {"code": 410}]]},
                {
                    "actions": [
                        ["limit-count", {"count": 1, "time_window": 60, "key_type": "constant", "key": "a"}]
                    ]
                },
            ]
        },
    },
    "label": {
        "traffic-label": {
            "rules": [
                {"match": [["arg_v", "==", "2"]], "actions": [{"set_headers": {"X-Label": "two"}}]},
                {"actions": [{"set_headers": {"X-Label": "other"}}]},
            ]
        }
    },
    "split": {
        "traffic-split": {
            "rules": [
                {
                    "match": [{"vars": [["http_x_beta", "==", "1"]]}],
                    "weighted_upstreams": [{"upstream": upstream("second"), "weight": 1}],
                }
            ]
        }
    },
    "mirror": {"proxy-mirror": {"host": f"http://{service('second')}"}},
    "gzip": {"gzip": {"types": ["application/json"], "min_length": 10}},
    "brotli": {"brotli": {"types": ["application/json"], "min_length": 10}},
    "ids": {"request-id": {}},
    "ids-other": {"request-id": {"header_name": "X-Trace"}},
    "logs": {"file-logger": {"path": "/tmp/x.log"}},
    "traces": {"opentelemetry": {"sampler": {"name": "always_on"}}},
    "errors": {"error-page": {}},
    "web": {"grpc-web": {}},
    "azure": {
        "azure-functions": {"function_uri": f"{FUNCTION}/api/fn", "authorization": {"apikey": "fn-key"}}
    },
    "openfunction": {
        "openfunction": {"function_uri": f"{FUNCTION}/of", "authorization": {"service_token": "u:p"}}
    },
    "whisk": {"openwhisk": {"api_host": FUNCTION, "service_token": "u:p", "namespace": "ns", "action": "do"}},
    "filtered": {
        "uri-blocker": {"block_rules": ["bad"], "_meta": {"filter": [["http_x_trusted", "~=", "1"]]}}
    },
    "function": {
        "serverless-pre-function": {
            "phase": "rewrite",
            "functions": [
                STRIP,
                'return function(conf, ctx) ngx.req.set_header("X-Gate", "a; \\"b\\"") end',
            ],
        },
        "limit-count": {
            "count": 2,
            "time_window": 60,
            "rejected_code": 429,
            "key_type": "var",
            "key": "http_x_tenant",
        },
    },
    "function-answer": {
        "serverless-post-function": {
            "functions": ['return function() ngx.status = 418 ngx.say("short and stout") ngx.exit(418) end']
        }
    },
    "echo-headers": {"echo": {"headers": {"X-Echo": "1"}}},
    "transcode": {
        "grpc-transcode": {"proto_id": "identity", "service": "identity.v1.Identity", "method": "GetUser"}
    },
}
FIELDS: dict[str, dict[str, Any]] = {
    "size": {"methods": ["POST"]},
    "transcode": {"uri": "/user", "methods": ["GET", "POST"]},
    "web": {
        "upstream": {"type": "roundrobin", "scheme": "grpc", "nodes": {service("identity-grpc", 50051): 1}}
    },
    "breaker": {"upstream": upstream("second")},
    "hosts": {
        "upstream": {
            "type": "roundrobin",
            "pass_host": "node",
            "nodes": {service("echo"): 1, service("second"): 1},
        }
    },
    "mtls": {
        "upstream": {
            "type": "roundrobin",
            "scheme": "https",
            "nodes": {service("guarded", 8443): 1},
            "tls": {"client_cert": "kept in the Secret", "client_key": "kept in the Secret"},
        }
    },
    "mtls-none": {
        "upstream": {"type": "roundrobin", "scheme": "https", "nodes": {service("guarded", 8443): 1}}
    },
    "idp": {"upstream": upstream("idp")},
    "passive": {
        "upstream": upstream(
            "pair",
            checks={
                # Once an hour: a check that passes would bring the failing process back.
                "active": {"http_path": "/healthz", "healthy": {"interval": 3600}},
                "passive": {"unhealthy": {"http_failures": 3, "http_statuses": [500]}},
            },
        )
    },
    "active": {"upstream": upstream("ward", checks={"active": ACTIVE})},
    "active-tls": {"upstream": upstream("meshed", checks={"active": ACTIVE})},
    "connections": {"upstream": upstream("second")},
}
FIELDS["transcode"]["upstream"] = FIELDS["web"]["upstream"]
CONSUMERS: list[dict[str, Any]] = [
    {
        "username": "pay",
        "plugins": {
            "key-auth": {"key": API_KEY},
            "basic-auth": {"username": "pay", "password": "correct horse battery"},
        },
    },
    {"username": "other", "plugins": {"key-auth": {"key": OTHER_KEY}}},
    {"username": "web", "plugins": {"jwt-auth": {"key": "web", "algorithm": "RS256", "public_key": PUBLIC}}},
    {"username": "app", "plugins": {"jwt-auth": {"key": "app", "algorithm": "RS256", "public_key": PUBLIC}}},
    {
        "username": "boss",
        "plugins": {"jwt-auth": {"key": "boss", "algorithm": "RS256", "public_key": _public(OWN_KEY)}},
    },
]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


TCP_PORT, TCP_CLOSED = _free_port(), _free_port()
STREAMS: list[dict[str, Any]] = [
    {
        "id": "tcp",
        "server_port": TCP_PORT,
        "upstream": upstream(),
        "plugins": {
            "ip-restriction": {"whitelist": ["127.0.0.0/8"]},
            "limit-conn": {"conn": 100, "burst": 0, "key_type": "constant", "key": "all"},
            "traffic-split": {
                "rules": [{"weighted_upstreams": [{"upstream": upstream("second"), "weight": 1}]}]
            },
        },
    },
    {
        "id": "tcp-closed",
        "server_port": TCP_CLOSED,
        "upstream": upstream(),
        "plugins": {"ip-restriction": {"blacklist": ["127.0.0.0/8"]}},
    },
]


def host(name: str) -> str:
    return f"{name}.plugins.test"


def configuration() -> Configuration:
    """Every plugin's example, and a route without any."""
    routes: list[dict[str, Any]] = []
    for name, plugins in PLUGINS.items():
        routes.append(
            {
                "id": name,
                "uri": "/*",
                "host": host(name),
                "upstream": upstream(),
                "plugins": plugins,
                **FIELDS.get(name, {}),
            }
        )
    # A guarded path beside an open one: the guard must not be avoidable by another spelling.
    routes.append(
        {
            "id": "admin",
            "uri": "/admin/*",
            "host": host("mixed"),
            "upstream": upstream(),
            "plugins": {"jwt-auth": {}},
        }
    )
    routes.append({"id": "open", "uri": "/*", "host": host("mixed"), "upstream": upstream()})
    routes += [
        {
            "id": "wild",
            "uri": "/*",
            "host": "*.wild.test",
            "upstream": upstream(),
            "plugins": {"jwt-auth": {}},
        },
        {"id": "wild-free", "uri": "/*", "host": "free.wild.test", "upstream": upstream()},
        {"id": "hostless", "uri": "/private/*", "upstream": upstream(), "plugins": {"jwt-auth": {}}},
    ]
    kinds: dict[Kind, list[dict[str, Any]]] = {
        Kind.ROUTE: routes,
        Kind.STREAM_ROUTE: STREAMS,
        Kind.CONSUMER: CONSUMERS,
        Kind.PROTO: [{"id": "identity", "content": PROTO}],
        Kind.PLUGIN_METADATA: [
            {"id": "error-page", "error_404": {"body": "<h1>nothing here</h1>", "content_type": "text/html"}}
        ],
    }
    found: dict[Kind, dict[str, Resource]] = {}
    for kind, items in kinds.items():
        for order, spec in enumerate(items):
            id_ = str(spec.get("id") or spec["username"])
            found.setdefault(kind, {})[id_] = Resource(
                kind, id_, spec, Origin("plugins.yaml", f"{kind}[{order}]"), order
            )
    return Configuration(found, router=Router.HOST_URI)


def translated(secrets: str = "/etc/istio/ingressgateway-certs") -> Translation:
    """Translate for the lab, with every difference signed and the extra services named.

    *secrets* is the folder in which Envoy finds the client's secrets of a login.
    """
    endpoints = {"authorization": f"http://{host('idp')}/auth", "token": f"http://{service('idp')}/token"}
    params = TranslateParams(
        jwt_issuers={"*": ISSUER, "boss": OWN_ISSUER},
        inline_credentials=True,
        rate_limit_service=service("ratelimit", 8081),
        tracing_provider="lab-traces",
        login={"secrets": secrets, "endpoints": {DISCOVERY: endpoints}},  # type: ignore[arg-type]  # pydantic reads plain mappings
    )
    target = Target(version="1.31.0", namespace=NAMESPACE)
    return translate(configuration(), signed(configuration(), params, target), target)
