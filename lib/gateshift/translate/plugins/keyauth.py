"""key-auth: a Lua filter on its routes compares a salted SHA-256 of the presented key.

Envoy's own api_key_auth is not compiled into istio-proxy, and a policy with header values would show the
keys to every reader. A hash of a random key shows nothing; the answers are APISIX's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from gateshift.apisix.model import Kind, Resource
from gateshift.translate.conditions import Inexpressible
from gateshift.translate.model import Fidelity
from gateshift.translate.plugins.envoy import lua
from gateshift.translate.plugins.lua import KEY_AUTH, SHA256
from gateshift.translate.plugins.registry import Use, handles

_SHORTEST = 12
"""A key of fewer characters could be found from its hash by trying."""


def _keys(use: Use) -> list[tuple[str, str]]:
    """Return (hash, consumer) of every usable key; unusable ones block the route."""
    found = []
    for kind in (Kind.CONSUMER, Kind.CREDENTIAL):
        for one in use.job.configuration.of(kind).values():
            plugins = one.spec.get("plugins")
            config = plugins.get("key-auth") if isinstance(plugins, Mapping) else None
            if isinstance(config, Mapping):
                found += _one_key(use, one, config)
    return sorted(found)


def _one_key(use: Use, owner: Resource, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    job, key = use.job, str(config.get("key", ""))
    name = str(owner.spec.get("username") or owner.id.split("/", 1)[0])
    path = ("plugins", "key-auth", "key")
    if not key or key.startswith("$") or "${{" in key:
        job.mark(owner, path, Fidelity.MANUAL, "", "the key is a reference: its value is not known here")
        use.block(
            f"the key of consumer {name} is a reference that cannot be resolved here",
            "read the configuration from the Admin API, or set the variable",
        )
        return []
    if len(key) < _SHORTEST:
        job.mark(owner, path, Fidelity.MANUAL, "", f"a key of fewer than {_SHORTEST} characters")
        use.block(
            f"the key of consumer {name} is so short that its hash would give it away",
            f"give the consumer a random key of at least {_SHORTEST} characters",
        )
        return []
    note = "a salted SHA-256 of the key stands in the filter, never the key"
    job.mark(owner, path, Fidelity.EXACT, "EnvoyFilter lua", note)
    return [(hashlib.sha256(f"gateshift:{key}".encode()).hexdigest(), name)]


@handles("key-auth")
def key_auth(use: Use) -> None:
    """Require a known key on this route; the consumer's name goes upstream as in APISIX."""
    config = use.config
    if config.get("anonymous_consumer"):
        raise Inexpressible("anonymous_consumer lets requests without key through: split the route by hand")
    keys = _keys(use)
    if not keys:
        use.block("no consumer has a key that could be checked", "see the consumers' entries in the ledger")
        return
    settings = {
        "HEADER": str(config.get("header", "apikey")).lower(),
        "QUERY": str(config.get("query", "apikey")),
        "HIDE": bool(config.get("hide_credentials")),
        "CONSUMERS": dict(keys),
    }
    lua(use, settings, SHA256, KEY_AUTH)
    target = "EnvoyFilter lua"
    use.exact("header", "query", target=target)
    note = "the key in the query string stays in the path" if config.get("hide_credentials") else ""
    use.approximate("hide_credentials", target=target, note=note)
    use.none("realm", note="no WWW-Authenticate header is sent")
    if not config:
        use.exact(target=target, note="header or query `apikey`")
