"""Authentication plugins: jwt-auth and key-auth, against the consumers and their credentials."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt

from gateshift.apisix.model import Configuration, Kind
from gateshift.lab.oldgateway.exchange import Exchange, Reply, message

__all__ = ["AUTH_PLUGINS", "Consumer", "Consumers"]

AUTH_PLUGINS = frozenset({"jwt-auth", "key-auth"})
_CACHE = 4096


@dataclass(frozen=True, slots=True)
class Consumer:
    """One consumer with the plugins that apply after it was recognized."""

    name: str
    credential: str
    auth: Mapping[str, Any]
    plugins: Mapping[str, Any]
    custom_id: str = ""


@dataclass(slots=True)
class Consumers:
    """Consumers by plugin and key."""

    _by_key: dict[tuple[str, str], Consumer] = field(default_factory=dict)
    _verified: dict[str, tuple[float, Consumer]] = field(default_factory=dict)

    @classmethod
    def build(cls, configuration: Configuration) -> Consumers:
        """Index the configuration's consumers and credentials."""
        made = cls()
        groups = configuration.of(Kind.CONSUMER_GROUP)
        for resource in configuration.of(Kind.CONSUMER).values():
            spec = resource.spec
            name = str(spec.get("username", resource.id))
            group = groups.get(str(spec.get("group_id", "")))
            own = dict(spec.get("plugins") or {})
            others = {**(group.spec.get("plugins") or {} if group else {}), **own}
            plugins = {k: v for k, v in others.items() if k not in AUTH_PLUGINS}
            custom = str((spec.get("labels") or {}).get("custom_id", ""))
            sources = [("", own)]
            for credential in configuration.of(Kind.CREDENTIAL).values():
                owner, _, short = credential.id.partition("/credentials/")
                if owner == name or credential.spec.get("username") == name:
                    sources.append((short or credential.id, dict(credential.spec.get("plugins") or {})))
            for short, source in sources:
                for plugin in AUTH_PLUGINS & source.keys():
                    key = str(source[plugin].get("key", name))
                    made._by_key[plugin, key] = Consumer(name, short or name, source[plugin], plugins, custom)
        return made

    def recognize(self, exchange: Exchange, consumer: Consumer) -> Consumer:
        """Note the consumer on the exchange and in the headers that backends read."""
        exchange.consumer = consumer.name
        exchange.headers["X-Consumer-Username"] = consumer.name
        exchange.headers["X-Credential-Identifier"] = consumer.credential
        if consumer.custom_id:
            exchange.headers["X-Consumer-Custom-Id"] = consumer.custom_id
        return consumer

    def jwt_auth(self, conf: Mapping[str, Any], exchange: Exchange) -> Consumer | Reply:
        """Find and verify the token as jwt-auth does: header, then query, then cookie."""
        header = str(conf.get("header", "authorization"))
        token = exchange.headers.get(header, "")
        if token[:7].lower() == "bearer ":
            token = token[7:]
        token = token or exchange.query.get(str(conf.get("query", "jwt")), "")
        token = token or exchange.cookies.get(str(conf.get("cookie", "jwt")), "")
        if not token:
            return message(401, "Missing JWT token in request")
        known = self._verified.get(token)
        if known and known[0] > time.time():
            return self.recognize(exchange, known[1])
        claim = str(conf.get("key_claim_name", "key"))
        try:
            key = jwt.decode(token, options={"verify_signature": False}).get(claim)
            consumer = self._by_key.get(("jwt-auth", str(key)))
            if key is None:
                return message(401, "missing user key in JWT token")
            if consumer is None:
                return message(401, "Invalid user key in JWT token")
            algorithm = str(consumer.auth.get("algorithm", "HS256"))
            secret = str(consumer.auth.get("public_key") or consumer.auth.get("secret") or "")
            claims = jwt.decode(
                token,
                secret,
                algorithms=[algorithm],
                options={"verify_aud": False, "verify_iss": False, "verify_iat": False},
                leeway=int(consumer.auth.get("lifetime_grace_period", 0)),
            )
        except jwt.PyJWTError:
            return message(401, "failed to verify jwt")
        if len(self._verified) >= _CACHE:
            self._verified.clear()
        self._verified[token] = (float(claims.get("exp", time.time() + 60)), consumer)
        return self.recognize(exchange, consumer)

    def key_auth(self, conf: Mapping[str, Any], exchange: Exchange) -> Consumer | Reply:
        """Find the key in the header or the query."""
        header, query = str(conf.get("header", "apikey")), str(conf.get("query", "apikey"))
        key = exchange.headers.get(header) or exchange.query.get(query)
        if not key:
            return message(401, "Missing API key found in request")
        consumer = self._by_key.get(("key-auth", key))
        if consumer is None:
            return message(401, "Invalid API key in request")
        if conf.get("hide_credentials"):
            exchange.headers.popall(header, None)
        return self.recognize(exchange, consumer)
