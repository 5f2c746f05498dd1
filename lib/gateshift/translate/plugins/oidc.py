"""openid-connect: bearer tokens as RequestAuthentication, logins as a CUSTOM policy or by Envoy itself.

A login flow (``bearer_only`` false) is nothing that a RequestAuthentication can do: it needs a service such
as oauth2-proxy under ``meshConfig.extensionProviders``, named by ``translate.login_provider``, or what
``translate.login`` says (:mod:`gateshift.translate.plugins.login`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from gateshift.istio.builders import dns_label
from gateshift.plan import digest_of
from gateshift.translate.conditions import Inexpressible
from gateshift.translate.job import Policy
from gateshift.translate.jwk import KeyFormatError, jwk_from_pem
from gateshift.translate.plugins.login import envoy_login
from gateshift.translate.plugins.registry import Use, handles

_WELL_KNOWN = "/.well-known/openid-configuration"
_SESSION = (
    "session",
    "logout_path",
    "post_logout_redirect_uri",
    "redirect_uri",
    "redirect_after_logout_uri",
    "use_pkce",
    "use_nonce",
    "unauth_action",
    "renew_access_token_on_expiry",
    "access_token_expires_leeway",
    "refresh_session_interval",
    "set_refresh_token_header",
    "revoke_tokens_on_logout",
    "force_reauthorize",
    "accept_none_alg",
    "iat_slack",
    "proxy_opts",
    "authorization_params",
    "client_rsa_private_key",
    "client_rsa_private_key_id",
    "client_jwt_assertion_expires_in",
    "token_endpoint_auth_method",
)
_INTROSPECTION = (
    "introspection_endpoint",
    "introspection_endpoint_auth_method",
    "introspection_interval",
    "introspection_expiry_claim",
    "introspection_addon_headers",
)
_INTROSPECTED = (
    "APISIX asks the provider about each token; here its signature, issuer and expiry decide: a revoked "
    "token passes until it expires, and one that is no JWT is refused"
)
_CLIENT = ("client_id", "client_secret", "scope", "ssl_verify", "timeout", "keepalive", "jwk_expires_in")


def _named_issuers(use: Use) -> list[str]:
    """Return the issuers that the configuration or the params name, none when they name none."""
    validator = use.config.get("claim_validator")
    rule = validator.get("issuer") if isinstance(validator, Mapping) else None
    if valid := rule.get("valid_issuers") if isinstance(rule, Mapping) else None:
        return sorted({str(one) for one in valid})
    known = use.job.params.jwt_issuers.get("openid-connect")
    return [known] if known else []


def _issuers(use: Use) -> tuple[list[str], bool]:
    """Return the tokens' issuers, and whether only the address of the discovery document tells them.

    APISIX reads the issuer in the document, which names another one where the address is an internal one.
    """
    if named := _named_issuers(use):
        return named, False
    discovery = str(use.config.get("discovery", ""))
    if discovery.endswith(_WELL_KNOWN) and "$" not in discovery and urlsplit(discovery).hostname:
        return [discovery.removesuffix(_WELL_KNOWN)], True
    raise Inexpressible(
        "the tokens' issuer is not known (discovery is a reference or no well-known address): name it in "
        "params: translate.jwt_issuers: {openid-connect: <iss>}"
    )


def _audiences(use: Use) -> list[str]:
    validator = use.config.get("claim_validator")
    rule = validator.get("audience") if isinstance(validator, Mapping) else None
    if not isinstance(rule, Mapping):
        return []
    if rule.get("claim", "aud") != "aud":
        raise Inexpressible("the audience stands in another claim than aud")
    return [str(use.config.get("client_id"))] if rule.get("match_with_client_id") else []


def _keys(use: Use) -> dict[str, Any]:
    if not use.config.get("public_key"):
        # Without keys of its own Istio reads the issuer's discovery document, as APISIX does.
        return {}
    try:
        key = jwk_from_pem(str(use.config["public_key"])) | {"use": "sig"}
    except KeyFormatError as error:
        raise Inexpressible(str(error)) from error
    algorithm = str(use.config.get("token_signing_alg_values_expected", ""))
    if algorithm and "," not in algorithm and algorithm != "EdDSA":
        key["alg"] = algorithm
    return {"jwks": json.dumps({"keys": [key]}, sort_keys=True)}


def _bearer(use: Use) -> None:
    config, job = use.config, use.job
    introspected = not config.get("public_key") and not config.get("use_jwks")
    scopes = [str(one) for one in config.get("required_scopes") or ()]
    issuers, guessed = _issuers(use)
    for issuer in issuers:
        rule: dict[str, Any] = {"issuer": issuer, **_keys(use)}
        audiences = _audiences(use)
        if audiences:
            rule["audiences"] = audiences
        rule["forwardOriginalToken"] = True
        if config.get("set_userinfo_header", True):
            rule["outputPayloadToHeader"] = "x-userinfo"
        known = job.jwt_rules.setdefault(issuer, rule)
        if known != rule:
            raise Inexpressible(f"another route checks tokens of {issuer} in another way")
    job.source("jwt", use.draft.resource)
    exempt = use.preflights
    conditions = [("request.auth.claims[iss]", issuers)]
    conditions += [("request.auth.claims[scope]", [scope]) for scope in scopes]
    for key, values in conditions:
        digest = digest_of([key, values])[:8]
        use.draft.policies.append(
            Policy(
                f"openid-connect:{digest}:{','.join(exempt)}",
                dns_label("bearer", digest),
                when=(({"key": key, "notValues": values},),),
                exempt_methods=exempt,
                checks_tokens=True,
            )
        )
    if config.get("set_access_token_header", True):
        name = "authorization" if config.get("access_token_in_authorization_header") else "x-access-token"
        if name == "x-access-token":
            use.draft.headers("request", "set")[name] = "%REQ(AUTHORIZATION)%"
    target = "RequestAuthentication + AuthorizationPolicy"
    missing = "a missing token is answered 403 instead of 401; realm and error are not told"
    if guessed:
        note = (
            "the issuer is taken from discovery's address; compare it with the document's issuer, or name it"
        )
        use.approximate("discovery", target=target, note=f"{note} in translate.jwt_issuers")
    use.exact("discovery", "public_key", "use_jwks", "claim_validator", "bearer_only", target=target)
    use.approximate("bearer_only", target=target, note=missing)
    if introspected:
        # Nothing is taken for granted silently: this is a difference that a person signs.
        use.approximate("bearer_only", "introspection_endpoint", target=target, note=_INTROSPECTED)
    use.exact("required_scopes", target="AuthorizationPolicy when request.auth.claims[scope]")
    use.approximate("token_signing_alg_values_expected", note="the keys' own alg decides")
    use.approximate("set_userinfo_header", note="X-Userinfo is base64url without padding, not base64")
    note = "X-Access-Token carries the whole Authorization value, with its `Bearer `"
    use.approximate("set_access_token_header", note=note)
    use.exact("access_token_in_authorization_header", target="forwardOriginalToken")
    use.ignored("set_id_token_header", note="a bearer token brings no id_token")
    use.ignored(*_CLIENT, note="only a login or introspection would use it")
    use.ignored(*_SESSION, note="there is no session with bearer tokens")
    use.ignored(*_INTROSPECTION, note="the token is checked by its signature")
    use.none("realm", note="Envoy's WWW-Authenticate names no realm")


@handles("openid-connect")
def openid_connect(use: Use) -> None:
    """Require a bearer token; a login needs translate.login_provider or translate.login."""
    if use.config.get("bearer_only"):
        _bearer(use)
        return
    provider = use.job.params.login_provider
    if not provider:
        if not envoy_login(use):
            use.block(
                "it sends browsers to a login, which Istio does not do by itself",
                "run oauth2-proxy, name it under meshConfig.extensionProviders and set "
                "translate.login_provider, or let Envoy do it: translate.login needs a folder with the "
                f"secrets and the endpoints of {use.config.get('discovery', 'its discovery document')}",
            )
        return
    exempt = use.preflights
    use.draft.policies.append(
        Policy(
            f"openid-connect:login:{','.join(exempt)}",
            dns_label("login", provider),
            exempt_methods=exempt,
            provider=provider,
        )
    )
    note = f"the provider {provider} logs users in by its own settings; carry these over"
    use.approximate(target="AuthorizationPolicy CUSTOM", note=note)
