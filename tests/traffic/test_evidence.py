"""What a rollback keeps of the gateway's configuration holds no secret."""

from __future__ import annotations

import json

from gateshift.cluster.evidence import redacted

SECRET = "s3cr3t-value"
DUMP = {
    "configs": [
        {
            "dynamic_route_configs": [
                {
                    "request_headers_to_add": [{"header": {"key": "x-api-key", "value": SECRET}}],
                    "match": {"headers": [{"name": "authorization", "string_match": {"exact": "kept"}}]},
                    "requestHeadersToAdd": [{"header": {"key": "x-route", "value": "kept"}}],
                }
            ],
            "dynamic_active_secrets": [
                {"tls_certificate": {"private_key": {"inline_bytes": SECRET}, "certificate_chain": "kept"}},
                {"secret": {"genericSecret": {"secret": {"inlineString": SECRET}}}},
            ],
            "filters": [
                {"name": "oauth2", "config": {"credentials": {"client_id": "kept", "token_secret": SECRET}}},
                {"name": "basic_auth", "typed_config": {"users": {"inline_string": SECRET}}},
            ],
        }
    ]
}


def test_secrets_go_and_the_rest_stays() -> None:
    text = json.dumps(redacted(DUMP))
    assert SECRET not in text
    assert text.count("[redacted]") == 5
    assert text.count("kept") == 4
    assert "x-api-key" in text
