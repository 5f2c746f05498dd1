"""jwt-auth: RequestAuthentication checks a token that is there, a DENY policy makes it required.

APISIX finds the key by the claim ``key`` and does not look at ``iss``; Istio finds it by ``iss``. Whose
tokens have which issuer is therefore an input (``translate.jwt_issuers``). The policy demands that the
issuer is known and that the claim names a consumer of this issuer, which is also what makes a request
without token fail.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gateshift.apisix.model import Kind, Resource
from gateshift.istio.builders import dns_label
from gateshift.istio.versions import Feature
from gateshift.plan import digest_of
from gateshift.translate.job import Policy
from gateshift.translate.jwk import KeyFormatError, jwk_from_pem
from gateshift.translate.model import Fidelity
from gateshift.translate.plugins.identity import strip_identity
from gateshift.translate.plugins.registry import Use, handles

_PUBLIC = ("RS", "ES", "PS", "Ed")


def _credentials(use: Use) -> list[tuple[Resource, tuple[str, ...], Mapping[str, Any]]]:
    """Return (resource, path, config) of every jwt-auth credential in the configuration."""
    found: list[tuple[Resource, tuple[str, ...], Mapping[str, Any]]] = []
    for kind in (Kind.CONSUMER, Kind.CREDENTIAL):
        for one in use.job.configuration.of(kind).values():
            plugins = one.spec.get("plugins")
            config = plugins.get("jwt-auth") if isinstance(plugins, Mapping) else None
            if isinstance(config, Mapping):
                found.append((one, ("plugins", "jwt-auth"), config))
    return found


def _issuer(use: Use, consumer: Resource) -> str | None:
    issuers = use.job.params.jwt_issuers
    name = str(consumer.spec.get("username", consumer.id))
    if issuers.get(name):
        return issuers[name]
    labels = consumer.spec.get("labels")
    if isinstance(labels, Mapping):
        for key in ("issuer", "iss", "jwt-issuer"):
            if labels.get(key):
                return str(labels[key])
    return issuers.get("*")


def _locations(use: Use) -> dict[str, Any]:
    config = use.config
    header = str(config.get("header", "authorization"))
    found: dict[str, Any] = {
        "fromHeaders": [
            {"name": "Authorization", "prefix": "Bearer "}
            if header.lower() == "authorization"
            else {"name": header}
        ],
        "fromParams": [str(config.get("query", "jwt"))],
    }
    raw = "a token in the header without `Bearer ` is not found"
    use.approximate("header", target="RequestAuthentication fromHeaders", note=raw)
    use.exact("query", target="RequestAuthentication fromParams")
    if use.job.has(Feature.JWT_FROM_COOKIES):
        found["fromCookies"] = [str(config.get("cookie", "jwt"))]
        use.exact("cookie", target="RequestAuthentication fromCookies")
    else:
        use.none("cookie", note=f"tokens in cookies need Istio {Feature.JWT_FROM_COOKIES.since}")
    return found


def _key(
    use: Use, owner: Resource, path: tuple[str, ...], config: Mapping[str, Any]
) -> dict[str, str] | None:
    job = use.job
    algorithm = str(config.get("algorithm", "HS256"))
    name = str(owner.spec.get("username", owner.id))
    if algorithm.startswith(_PUBLIC) and config.get("public_key"):
        try:
            key = jwk_from_pem(str(config["public_key"]))
        except KeyFormatError as error:
            job.mark(owner, (*path, "public_key"), Fidelity.MANUAL, "", str(error))
            use.block(f"consumer {name}: {error}", "correct the consumer's public_key")
            return None
        job.mark(owner, (*path, "public_key"), Fidelity.EXACT, "RequestAuthentication jwks")
        return key | {"use": "sig"} | ({"alg": algorithm} if algorithm != "EdDSA" else {})
    reason = (
        f"consumer {name} signs with a shared secret ({algorithm}), "
        "which every reader of the emitted object could see"
    )
    for field in ("secret", "base64_secret", "public_key"):
        if field in config:
            job.mark(owner, (*path, field), Fidelity.MANUAL, "", "re-key to RS256 or ES256; never copied")
    use.block(reason, "give the consumer an RS256 or ES256 key pair and its public_key in APISIX first")
    return None


_MINOR = {
    "exp": "tokens are issued elsewhere: their own exp decides",
    "private_key": "signing keys have no place in a gateway",
    "lifetime_grace_period": "Envoy allows 60 s of clock skew",
}


def _consumers(use: Use) -> tuple[dict[str, list[dict[str, str]]], dict[str, list[str]]]:
    """Return by issuer the JWKs, and the values of the key claim that are known."""
    by_issuer: dict[str, list[dict[str, str]]] = {}
    claims: dict[str, list[str]] = {}
    job = use.job
    for owner, path, config in _credentials(use):
        key = _key(use, owner, path, config)
        issuer = _issuer(use, owner)
        name = str(owner.spec.get("username", owner.id))
        for field in config:
            if field == "key":
                note = "the claim must name it"
                job.mark(owner, (*path, field), Fidelity.EXACT, "AuthorizationPolicy when", note)
            elif field == "algorithm":
                job.mark(owner, (*path, field), Fidelity.EXACT, "RequestAuthentication jwks alg")
            elif field in _MINOR:
                job.mark(owner, (*path, field), Fidelity.IGNORED_DEFAULT, "", _MINOR[field])
        if key is None:
            continue
        if issuer is None:
            use.block(
                f"the issuer of consumer {name}'s tokens is not known (APISIX does not look at it)",
                f"name it in params: translate.jwt_issuers: {{{name}: <iss>}}",
            )
            continue
        by_issuer.setdefault(issuer, []).append(key)
        claims.setdefault(issuer, []).append(str(config.get("key", name)))
    if any(len(keys) > 1 for keys in by_issuer.values()):
        use.approximate(
            target="RequestAuthentication jwks",
            note="several consumers share one token issuer: a token signed by one may carry the claim of "
            "another; give each consumer its own issuer",
        )
    return by_issuer, {issuer: sorted(claims[issuer]) for issuer in sorted(claims)}


def _strangers(claim: str, claims: Mapping[str, Sequence[str]]) -> tuple[tuple[dict[str, Any], ...], ...]:
    """Return who is refused: all but the known issuers, and of these what names no consumer of its own.

    An issuer vouches for its own consumers only: its key could sign another consumer's name as well.
    """
    issuer, name = "request.auth.claims[iss]", f"request.auth.claims[{claim}]"
    others: dict[str, Any] = {"key": issuer, "notValues": sorted(claims)}
    return (
        (others,),
        *(
            ({"key": issuer, "values": [one]}, {"key": name, "notValues": list(known)})
            for one, known in claims.items()
        ),
    )


def _named_by_key(use: Use) -> bool:
    """Tell whether every consumer is called like its key: then the claim is the consumer's name."""
    named = all(str(c.get("key")) == str(o.spec.get("username", o.id)) for o, _, c in _credentials(use))
    if not named:
        use.job.warn("X-Consumer-Username is not sent to backends: consumers are not named like their keys")
    return named


@handles("jwt-auth")
def jwt_auth(use: Use) -> None:
    """Require a valid token of a known consumer on this route and on no other."""
    config = use.config
    by_issuer, claims = _consumers(use)
    if not claims:
        use.block("no consumer has a key that Istio could check", "see the consumers' entries in the ledger")
        return
    hide = bool(config.get("hide_credentials", False))
    locations = _locations(use)
    for issuer, keys in sorted(by_issuer.items()):
        unique = [json.loads(text) for text in sorted({json.dumps(one, sort_keys=True) for one in keys})]
        rule = {
            "issuer": issuer,
            "jwks": json.dumps({"keys": unique}, sort_keys=True),
            **locations,
            "forwardOriginalToken": not hide,
        }
        if _named_by_key(use):
            claim_name = str(config.get("key_claim_name", "key"))
            rule["outputClaimToHeaders"] = [{"header": "x-consumer-username", "claim": claim_name}]
        known = use.job.jwt_rules.setdefault(issuer, rule)
        if known != rule:
            use.job.warn(
                f"routes look for tokens of {issuer} in different places: the first route's are used"
            )
            known["forwardOriginalToken"] = known["forwardOriginalToken"] or not hide
    strip_identity(use, username=not _named_by_key(use))
    use.job.source("jwt", use.draft.resource, *(f"{o.kind}/{o.id}" for o, _, _ in _credentials(use)))
    claim = str(config.get("key_claim_name", "key"))
    key = f"jwt-auth:{claim}:{digest_of(claims)[:8]}"
    exempt = use.preflights
    use.draft.policies.append(
        Policy(
            key + ":" + ",".join(exempt),
            dns_label("require-token", claim),
            when=_strangers(claim, claims),
            exempt_methods=exempt,
            checks_tokens=True,
        )
    )
    use.approximate("key_claim_name", note="read after the signature was checked, not before")
    use.exact("hide_credentials", target="RequestAuthentication forwardOriginalToken")
    use.ignored("store_in_ctx", note="only APISIX's own plugins read it")
    use.none("realm", note="the 401 of Envoy has its own WWW-Authenticate")
    if config.get("anonymous_consumer"):
        use.block("anonymous_consumer lets requests without token through", "split the route by hand")
    note = "a missing token is answered 403 instead of 401, and iss must be the consumer's issuer"
    if not use.job.has(Feature.JWT_FROM_COOKIES):
        note += f"; tokens in cookies are not found before Istio {Feature.JWT_FROM_COOKIES.since}"
    use.approximate(target="RequestAuthentication + AuthorizationPolicy", note=note)
