"""Restrictions: by address as a DENY policy, by user agent, referer or URI as guards above the route."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from gateshift.istio.builders import dns_label
from gateshift.plan import digest_of
from gateshift.translate.conditions import Condition, Inexpressible, check_regex
from gateshift.translate.job import Policy
from gateshift.translate.plugins.registry import Use, handles

_TARGET = "VirtualService http[].directResponse above the route"


def _addresses(raw: object) -> list[str]:
    return [str(one) for one in raw] if isinstance(raw, list) else []


@handles("ip-restriction")
def ip_restriction(use: Use) -> None:
    """Refuse by the client's address as the gateway sees it after X-Forwarded-For."""
    config = use.config
    allowed, denied = _addresses(config.get("whitelist")), _addresses(config.get("blacklist"))
    exempt = use.preflights
    target = "AuthorizationPolicy DENY"
    note = "behind a load balancer the hop count (numTrustedProxies) decides whose address it is"
    for key, blocks, field in (
        ("whitelist", allowed, "notRemoteIpBlocks"),
        ("blacklist", denied, "remoteIpBlocks"),
    ):
        if blocks:
            digest = digest_of([field, sorted(blocks)])[:8]
            use.draft.policies.append(
                Policy(
                    f"ip-restriction:{digest}:{','.join(exempt)}",
                    dns_label("address", digest),
                    source={field: sorted(blocks)},
                    exempt_methods=exempt,
                )
            )
            use.approximate(key, target=target, note=note)
    if not allowed and not denied:
        raise Inexpressible("neither whitelist nor blacklist is given")
    use.approximate("message", note="Envoy answers `RBAC: access denied`")
    if int(config.get("response_code", 403)) != 403:
        use.approximate("response_code", note="Envoy answers 403")
    use.exact("response_code", target=target)


def _refuse(use: Use, name: str, conditions: Sequence[Condition], status: int, message: str) -> None:
    body = {"string": f'{{"message":"{message}"}}\n'}
    http: dict[str, Any] = {
        "directResponse": {"status": status, "body": body},
        "headers": {"response": {"set": {"content-type": "application/json"}}},
    }
    use.guard(name, conditions, http)


def _search(patterns: Sequence[str], *, ignore_case: bool = False) -> dict[str, str]:
    joined = "|".join(f"(?:{check_regex(one)})" for one in patterns)
    return {"regex": f"{'(?i)' if ignore_case else ''}.*(?:{joined}).*"}


@handles("ua-restriction")
def ua_restriction(use: Use) -> None:
    """Refuse by the User-Agent header."""
    config = use.config
    message = str(config.get("message", "Not allowed"))
    if config.get("allowlist"):
        rule = _search([str(one) for one in config["allowlist"]])
        _refuse(use, "agent", [{"withoutHeaders": {"user-agent": rule}}], 403, message)
        missing_handled = True
    else:
        patterns = [str(one) for one in config.get("denylist") or ()]
        if not patterns:
            raise Inexpressible("neither allowlist nor denylist is given")
        _refuse(use, "agent", [{"headers": {"user-agent": _search(patterns)}}], 403, message)
        missing_handled = False
    bypass = bool(config.get("bypass_missing", False))
    if bypass and missing_handled:
        raise Inexpressible("an allowlist that lets requests without User-Agent pass has no equivalent")
    if not bypass and not missing_handled:
        _refuse(use, "agent-missing", [{"withoutHeaders": {"user-agent": {"regex": "*"}}}], 403, message)
    use.exact("allowlist", "denylist", "message", "bypass_missing", target=_TARGET)


def _host_pattern(host: str) -> str:
    wildcard = host.startswith("*")
    plain = re.escape(host.lstrip("*"))
    return rf"https?://{'[^/:]*' if wildcard else ''}{plain}(?::\d+)?(?:[/?#].*)?"


@handles("referer-restriction")
def referer_restriction(use: Use) -> None:
    """Refuse by the host of the Referer header."""
    config = use.config
    message = str(config.get("message", "Your referer host is not allowed"))
    bypass = bool(config.get("bypass_missing", False))
    hosts = [str(one).lower() for one in config.get("whitelist") or config.get("blacklist") or ()]
    if not hosts:
        raise Inexpressible("neither whitelist nor blacklist is given")
    rule = {"regex": "(?i)(?:" + "|".join(_host_pattern(one) for one in hosts) + ")"}
    absent: Condition = {"withoutHeaders": {"referer": {"regex": "*"}}}
    if config.get("whitelist"):
        if bypass:
            refused: Condition = {"headers": {"referer": {"regex": "*"}}, "withoutHeaders": {"referer": rule}}
        else:
            refused = {"withoutHeaders": {"referer": rule}}
        _refuse(use, "referer", [refused], 403, message)
    else:
        _refuse(use, "referer", [{"headers": {"referer": rule}}], 403, message)
        if not bypass:
            _refuse(use, "referer-missing", [absent], 403, message)
    use.exact("whitelist", "blacklist", "message", "bypass_missing", target=_TARGET)


@handles("uri-blocker")
def uri_blocker(use: Use) -> None:
    """Refuse requests whose path with query matches a pattern."""
    config = use.config
    rules = [str(one) for one in config.get("block_rules") or ()]
    if not rules:
        raise Inexpressible("no block_rules are given")
    rule = _search(rules, ignore_case=bool(config.get("case_insensitive", False)))
    status = int(config.get("rejected_code", 403))
    if config.get("rejected_msg"):
        message = str(config["rejected_msg"]).replace('"', '\\"')
        body = {"string": f'{{"error_msg":"{message}"}}\n'}
        answer: dict[str, Any] = {"directResponse": {"status": status, "body": body}}
    else:
        answer = {"directResponse": {"status": status}}
    use.guard("uri", [{"headers": {":path": rule}}], answer)
    note = "Envoy sees the normalised path, APISIX the raw one"
    use.approximate("block_rules", target=_TARGET, note=note)
    use.exact("rejected_code", "rejected_msg", "case_insensitive", target=_TARGET)
