"""basic-auth: Envoy's own filter, on its routes only, with the consumers' passwords as hashes."""

from __future__ import annotations

import base64
import hashlib

from gateshift.istio.versions import Feature
from gateshift.translate.conditions import Inexpressible
from gateshift.translate.job import HttpFilter
from gateshift.translate.model import Fidelity
from gateshift.translate.plugins.identity import credentials, strip_identity
from gateshift.translate.plugins.registry import Use, handles

_FILTER = "type.googleapis.com/envoy.extensions.filters.http.basic_auth.v3.BasicAuth"
_NOBODY = "nobody:{SHA}" + base64.b64encode(hashlib.sha1(b"", usedforsecurity=False).digest()).decode()


def _users(use: Use) -> str:
    """Return the lines of an htpasswd file; ``{SHA}`` is the only form that Envoy reads."""
    lines = []
    for owner, name, config in credentials(use, "basic-auth"):
        user, password = str(config.get("username", "")), str(config.get("password", ""))
        place = ("plugins", "basic-auth")
        if not user or ":" in user or not password or password.startswith("$") or "${{" in password:
            use.job.mark(owner, (*place, "password"), Fidelity.MANUAL, "", "its value is not known here")
            use.block(
                f"the credentials of consumer {name} are incomplete or a reference",
                "read the configuration from the Admin API, or set the variable",
            )
            continue
        # Not a choice: Envoy's filter knows this hash alone.
        digest = hashlib.sha1(password.encode(), usedforsecurity=False).digest()
        lines.append(f"{user}:{{SHA}}{base64.b64encode(digest).decode()}")
        note = "an unsalted SHA-1 of the password stands in the EnvoyFilter"
        use.job.mark(owner, (*place, "username"), Fidelity.EXACT, "EnvoyFilter basic_auth users")
        use.job.mark(owner, (*place, "password"), Fidelity.APPROXIMATE, "EnvoyFilter basic_auth users", note)
        if user != name:
            use.job.warn(f"consumer {name}: backends get the user name {user} in X-Consumer-Username")
    return "".join(f"{one}\n" for one in sorted(lines))


@handles("basic-auth")
def basic_auth(use: Use) -> None:
    """Require the name and password of a consumer; the name goes upstream as X-Consumer-Username."""
    config = use.config
    if not use.job.has(Feature.BASIC_AUTH_FILTER):
        raise Inexpressible(
            f"istio-proxy {use.job.version} has no basic_auth filter for single routes: it came with "
            f"{Feature.BASIC_AUTH_FILTER.since}"
        )
    if config.get("anonymous_consumer"):
        raise Inexpressible("anonymous_consumer lets requests without password through: split the route")
    if not use.job.params.inline_credentials:
        use.block(
            "the consumers' passwords would stand in an EnvoyFilter as unsalted SHA-1 hashes",
            "use long random passwords and set translate.inline_credentials: true, or check them elsewhere",
        )
        return
    users = _users(use)
    if not users:
        use.block("no consumer has a password that could be checked", "see the consumers' entries")
        return
    name = "gateshift.basic_auth" + ("_global" if use.is_global else "")
    base = {
        "@type": _FILTER,
        "users": {"inline_string": _NOBODY + "\n"},
        "forward_username_header": "x-consumer-username",
    }
    use.job.use_filter(HttpFilter(name, "basic-auth", use.priority, base, disabled=True))
    use.draft.filters[name] = {"@type": f"{_FILTER}PerRoute", "users": {"inline_string": users}}
    strip_identity(use)
    if config.get("hide_credentials"):
        use.draft.remove_header("request", "authorization")
    use.exact("hide_credentials", target="VirtualService http[].headers.request.remove")
    use.none("realm", note="Envoy sends a WWW-Authenticate of its own")
    note = "the text of the 401 is Envoy's; passwords are kept as unsalted SHA-1"
    use.approximate(target="EnvoyFilter basic_auth", note=note)
