"""Faults a person or a rehearsal switches on, and the account of the errors the backends made themselves.

A fault is for one service and one gateway of origin (``*`` for all). The account is what the rehearsal
compares with what clients saw: an error that no backend made was made by a gateway.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

__all__ = ["ANY", "Account", "Fault", "Faults", "Gateway", "origin"]

ANY = "*"


class Gateway(StrEnum):
    """Through which gateway a request came."""

    APISIX = "apisix"
    ISTIO = "istio"
    DIRECT = "direct"


def origin(header_names: Iterable[str]) -> Gateway:
    """Tell the gateway from the (lower-case) header names it left on the request.

    Envoy marks every request it forwards with ``x-envoy-*`` headers (Istio gateways at least with
    ``x-envoy-attempt-count``). APISIX sends X-Real-IP and X-Forwarded-Host with every request. The order
    matters: a translation may make Istio send X-Real-IP too, for backends that read it.
    """
    found = Gateway.DIRECT
    for name in header_names:
        if name.startswith("x-envoy-"):
            return Gateway.ISTIO
        if name in {"x-real-ip", "x-forwarded-host"}:
            found = Gateway.APISIX
    return found


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong. *error_ratio* is 0-1, *latency_ms* is added to each answer.

    *refuse* cuts the connection without an answer; *hang* never answers.
    """

    error_ratio: float = 0.0
    status: int = 500
    latency_ms: float = 0.0
    refuse: bool = False
    hang: bool = False

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Fault:
        """Build from a control request; raises ValueError with one sentence."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known - {"service", "gateway"})
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}; a fault has {', '.join(sorted(known))}")
        fault = cls(
            error_ratio=float(data.get("error_ratio", 0.0)),
            status=int(data.get("status", 500)),
            latency_ms=float(data.get("latency_ms", 0.0)),
            refuse=bool(data.get("refuse", False)),
            hang=bool(data.get("hang", False)),
        )
        if not 0 <= fault.error_ratio <= 1:
            raise ValueError(f"error_ratio is a ratio from 0 to 1, not {fault.error_ratio}")
        if not 400 <= fault.status <= 599:
            raise ValueError(f"status is an error status from 400 to 599, not {fault.status}")
        if fault.latency_ms < 0:
            raise ValueError(f"latency_ms is not negative, got {fault.latency_ms}")
        return fault


@dataclass(slots=True)
class Account:
    """Counts of one service and gateway. *errors* are 5xx (or gRPC errors) that the fault API asked for."""

    requests: int = 0
    errors: int = 0
    cut: int = 0
    hung: int = 0


class Faults:
    """The faults in force and the account, for all services of the process."""

    def __init__(self, services: Iterable[str], seed: int = 0) -> None:
        self.services = frozenset(services)
        self._rules: dict[tuple[str, str], Fault] = {}
        self._accounts: dict[tuple[str, str], Account] = {}
        self._random = random.Random(seed)  # noqa: S311 - a rehearsal wants repeatable faults

    def put(self, data: Mapping[str, Any]) -> Fault:
        """Set the fault of ``data["service"]`` and ``data["gateway"]`` (default: all)."""
        service, gateway = str(data.get("service", ANY)), str(data.get("gateway", ANY))
        if service != ANY and service not in self.services:
            raise ValueError(f"no service {service!r}; there are {', '.join(sorted(self.services))}")
        if gateway != ANY and gateway not in set(Gateway):
            raise ValueError(f"no gateway {gateway!r}; use apisix, istio, direct or *")
        fault = Fault.read(data)
        self._rules[service, gateway] = fault
        return fault

    def clear(self, service: str = ANY, gateway: str = ANY) -> None:
        """Remove the fault of one service and gateway, or with ``*`` and ``*`` all faults."""
        if service == ANY and gateway == ANY:
            self._rules.clear()
        else:
            self._rules.pop((service, gateway), None)

    def rules(self) -> list[dict[str, Any]]:
        """The faults in force, for the control API."""
        return [{"service": s, "gateway": g, **asdict(f)} for (s, g), f in sorted(self._rules.items())]

    def account(self, service: str, gateway: str) -> Account:
        """The account of one service and gateway."""
        found = self._accounts.get((service, gateway))
        if found is None:
            found = self._accounts[service, gateway] = Account()
        return found

    def find(self, service: str, gateway: str) -> Fault | None:
        """The fault that holds: the most specific one, service before gateway."""
        if not self._rules:
            return None
        for key in ((service, gateway), (service, ANY), (ANY, gateway), (ANY, ANY)):
            found = self._rules.get(key)
            if found is not None:
                return found
        return None

    def strikes(self, fault: Fault) -> bool:
        """Decide whether this request gets the error."""
        return fault.error_ratio > 0 and self._random.random() < fault.error_ratio

    def stats(self) -> dict[str, Any]:
        """The account as plain data: by service and gateway, and totals by gateway."""
        services: dict[str, dict[str, Any]] = {}
        totals: dict[str, dict[str, int]] = {}
        for (service, gateway), account in sorted(self._accounts.items()):
            row = asdict(account)
            services.setdefault(service, {})[gateway] = row
            total = totals.setdefault(gateway, dict.fromkeys(row, 0))
            for name, value in row.items():
                total[name] += value
        return {"services": services, "gateways": totals}

    def reset(self) -> None:
        """Start the account anew."""
        self._accounts.clear()
