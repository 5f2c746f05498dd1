"""openid-connect with a login: Envoy's oauth2 filter, empty for the gateway and configured on its routes.

The filter knows no discovery document and no id_token: the endpoints stand in ``translate.login.endpoints``,
and what APISIX checks in the id_token (signature, issuer, nonce) is not checked. Secrets are files of the
gateway's pods, read by Envoy through SDS; nothing of them is copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from gateshift.istio.versions import Feature
from gateshift.plan import digest_of
from gateshift.translate.conditions import Inexpressible
from gateshift.translate.job import HttpFilter
from gateshift.translate.plugins.envoy import cluster_of
from gateshift.translate.plugins.registry import Use
from gateshift.translate.plugins.values import address_of

__all__ = ["envoy_login"]

_FILTER = "type.googleapis.com/envoy.extensions.filters.http.oauth2.v3.OAuth2"
_METHODS = {"client_secret_basic": "BASIC_AUTH", "client_secret_post": "URL_ENCODED_BODY"}
_FROM_CLIENTS = ("x-access-token", "x-id-token", "x-raw-id-token", "x-refresh-token", "x-userinfo")
"""What only the gateway may say of a user: APISIX overwrites or clears it."""
_DECIDES = {
    "required_scopes": "scopes of the token decide who may pass",
    "claim_schema": "claims of the user decide who may pass",
    "par": "the provider wants pushed authorization requests",
    "dpop": "the provider wants proofs of possession",
    "force_reauthorize": "every session must log in again",
    "proxy_opts": "the provider is reached through a proxy",
}
_EVERYWHERE = ({"name": ":method", "present_match": True},)


def _refuse(use: Use) -> None:
    """Raise Inexpressible for what would let in other users than APISIX does, or nobody at all."""
    config = use.config
    for key, why in _DECIDES.items():
        value = config.get(key)
        if value and not (isinstance(value, Mapping) and value.get("enabled") is False):
            raise Inexpressible(f"{why}, and Envoy's login does not ({key})")
    validator = config.get("claim_validator")
    audience = validator.get("audience") if isinstance(validator, Mapping) else None
    if isinstance(audience, Mapping) and (audience.get("required") or audience.get("match_with_client_id")):
        raise Inexpressible("the audience of the token decides who may pass, and Envoy's login does not ask")
    if config.get("unauth_action", "auth") not in ("auth", "deny"):
        raise Inexpressible("requests without a login pass (unauth_action), and Envoy would stop them")
    needed = Feature.OAUTH2_PER_ROUTE
    if not use.job.has(needed):
        raise Inexpressible(f"a login on single routes needs Istio {needed.since}, whose Envoy is the first")


def _callback(use: Use) -> tuple[str, str]:
    """Return (the address given to the provider, its path)."""
    raw = str(use.config.get("redirect_uri") or "")
    parts = urlsplit(raw)
    if not parts.path.startswith("/") or parts.query or "$" in raw or "%" in raw:
        raise Inexpressible(
            "redirect_uri names no path: APISIX then calls back below each request's own, Envoy needs one"
        )
    base = f"{parts.scheme}://{parts.netloc}" if parts.netloc else "%REQ(:SCHEME)%://%REQ(:AUTHORITY)%"
    return base + parts.path, parts.path


def _secret(folder: str, label: str, kind: str) -> dict[str, Any]:
    path = f"{folder.rstrip('/')}/{label}-{kind}.yaml"
    return {
        "name": kind,
        "sds_config": {
            "path_config_source": {"path": path, "watched_directory": {"path": folder}},
            "resource_api_version": "V3",
        },
    }


def _settings(use: Use, folder: str, label: str) -> dict[str, Any]:
    config, job = use.config, use.job
    endpoints = job.params.login.endpoints[str(config["discovery"])]
    at = address_of(endpoints.token)
    verify = config.get("ssl_verify", True) not in (False, "no")
    cluster = cluster_of(use, at.host, at.port, tls=at.tls, verify=verify)
    redirect_uri, path = _callback(use)
    authorization = endpoints.authorization
    extra = config.get("authorization_params") or {}
    if extra:
        query = "&".join(f"{quote(str(k), safe='')}={quote(str(v), safe='')}" for k, v in extra.items())
        authorization += ("&" if "?" in authorization else "?") + query
    found: dict[str, Any] = {
        "token_endpoint": {
            "cluster": cluster,
            "uri": endpoints.token,
            "timeout": f"{int(config.get('timeout', 3))}s",
        },
        "authorization_endpoint": authorization,
        "redirect_uri": redirect_uri,
        "redirect_path_matcher": {"path": {"exact": path}},
        "signout_path": {"path": {"exact": str(config.get("logout_path", "/logout"))}},
        "credentials": {
            "client_id": str(config["client_id"]),
            "token_secret": _secret(folder, label, "token"),
            "hmac_secret": _secret(folder, label, "hmac"),
            "cookie_names": {
                name: f"{name.title().replace('_', '')}-{label.rsplit('-', 1)[-1]}"
                for name in ("bearer_token", "oauth_hmac", "oauth_expires", "id_token", "refresh_token")
            },
        },
        "auth_scopes": str(config.get("scope") or "openid").split(),
        "auth_type": _METHODS[str(config.get("token_endpoint_auth_method", "client_secret_basic"))],
        "forward_bearer_token": config.get("set_access_token_header", True) is not False,
        "default_expires_in": f"{int(config.get('access_token_expires_in', 3600))}s",
        "use_refresh_token": config.get("renew_access_token_on_expiry", True) is not False,
    }
    if config.get("unauth_action") == "deny":
        found["deny_redirect_matcher"] = list(_EVERYWHERE)
    if use.preflights:
        found["pass_through_matcher"] = [{"name": ":method", "string_match": {"exact": "OPTIONS"}}]
    return found


def _label(use: Use) -> str:
    """Name a client's files: the same for every route that logs in alike, whatever its secret."""
    known = {key: value for key, value in use.config.items() if key not in ("client_secret", "session")}
    return f"login-{digest_of([str(use.config['client_id']), known])[:8]}"


def envoy_login(use: Use) -> bool:
    """Log users in by Envoy; False where ``translate.login`` does not say all that is needed.

    Raises Inexpressible where other users would get in, or none.
    """
    config, login = use.config, use.job.params.login
    if login.secrets is None or str(config.get("discovery")) not in login.endpoints:
        return False
    _refuse(use)
    method = str(config.get("token_endpoint_auth_method", "client_secret_basic"))
    if method not in _METHODS:
        raise Inexpressible(f"the client authenticates by {method}, which no Envoy of these versions does")
    if not config.get("client_id"):
        raise Inexpressible("it names no client_id")
    label = _label(use)
    settings = _settings(use, login.secrets, label)
    name = "gateshift.openid_connect" + ("_global" if use.is_global else "")
    use.job.use_filter(HttpFilter(name, "openid-connect", use.priority, {"@type": _FILTER}))
    use.draft.filters[name] = {"@type": f"{_FILTER}PerRoute", "config": settings}
    for header in _FROM_CLIENTS:
        use.draft.remove_header("request", header)
    if settings["forward_bearer_token"] and not config.get("access_token_in_authorization_header"):
        use.draft.headers("request", "set")["x-access-token"] = "%REQ(AUTHORIZATION)%"
    use.job.warn(
        f"{use.owner.kind}/{use.owner.id}: before its EnvoyFilter is applied, {login.secrets} of the "
        f"gateway's pods must hold {label}-token.yaml and {label}-hmac.yaml: Envoy takes no new route "
        "without them"
    )
    _account(use, f"{login.secrets}/{label}")
    return True


_UNUSED = (
    "realm",
    "keepalive",
    "jwk_expires_in",
    "jwt_verification_cache_ignore",
    "cache_segment",
    "token_signing_alg_values_expected",
    "introspection_endpoint_auth_method",
    "introspection_interval",
    "introspection_expiry_claim",
    "introspection_addon_headers",
    "access_token_expires_leeway",
    "accept_unsupported_alg",
    "client_rsa_private_key",
    "client_rsa_private_key_id",
    "client_jwt_assertion_expires_in",
    "client_jwt_assertion_alg",
    "client_jwt_assertion_audience",
    "required_scopes",
    "claim_schema",
    "par",
    "dpop",
    "force_reauthorize",
    "proxy_opts",
)
"""What changes nothing for this login: options of other flows, and what :func:`_refuse` found empty."""


def _account(use: Use, files: str) -> None:
    target = "EnvoyFilter oauth2"
    headers = {
        "set_id_token_header": "X-ID-Token",
        "set_userinfo_header": "X-Userinfo",
        "set_raw_id_token_header": "X-Raw-ID-Token",
        "set_refresh_token_header": "X-Refresh-Token",
    }
    by_default = ("set_id_token_header", "set_userinfo_header")
    missing = [headers[key] for key in by_default if use.config.get(key, True) is not False]
    note = (
        "the endpoints are those of translate.login.endpoints; the id_token is not looked at: neither its "
        "signature nor issuer, audience or nonce, only that the token endpoint gave an access token"
    )
    note += f"; backends get no {' and no '.join(missing)}" if missing else ""
    use.approximate("discovery", target=target, note=note)
    use.exact("client_id", "scope", "timeout", "token_endpoint_auth_method", target=target)
    use.exact("redirect_uri", target=f"{target} redirect_uri")
    use.exact("authorization_params", target=f"{target} authorization_endpoint")
    use.exact("ssl_verify", target="DestinationRule tls")
    use.manual("client_secret", target=f"{target} token_secret", note=f"put it into {files}-token.yaml")
    note = f"cookies (Secure, HttpOnly, of other names) hold the tokens, signed by {files}-hmac.yaml"
    note += "; everybody logs in once more"
    use.approximate("session", target=f"{target} hmac_secret", note=note)
    if use.config.get("use_pkce"):
        use.exact("use_pkce")
    else:
        use.approximate("use_pkce", note="Envoy always uses PKCE")
    use.exact("unauth_action", target=f"{target} deny_redirect_matcher")
    use.exact("bearer_only", target=target)
    use.approximate("logout_path", target=f"{target} signout_path", note="the provider's own session stays")
    use.approximate("post_logout_redirect_uri", note="after signing out the browser goes to /")
    note = "X-Access-Token carries the whole Authorization value, with its `Bearer `"
    use.approximate("set_access_token_header", note=note)
    use.exact("access_token_in_authorization_header", target=f"{target} forward_bearer_token")
    for key, header in headers.items():
        if use.config.get(key) is False:
            use.exact(key)
        else:
            use.none(key, note=f"{header} is not sent to backends")
    note = "requests that bring a bearer token of their own are sent to the login as well"
    use.none("public_key", "use_jwks", "introspection_endpoint", note=note)
    use.approximate(
        "renew_access_token_on_expiry", target=f"{target} use_refresh_token", note="by expires_in"
    )
    note = "what the token endpoint says of it comes first"
    use.approximate("access_token_expires_in", target=f"{target} default_expires_in", note=note)
    use.none("claim_validator", "accept_none_alg", "iat_slack", note="the id_token is not looked at")
    use.none("refresh_session_interval", "revoke_tokens_on_logout", note="Envoy does no such thing")
    use.none("use_nonce", note="Envoy's state is bound to a cookie, the id_token's nonce is not checked")
    use.ignored(*_UNUSED, note="it changes nothing for a login")
