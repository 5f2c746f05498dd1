"""What every way of moving traffic has in common: read, plan, set, confirm, snapshot, restore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from gateshift.errors import TrafficError
from gateshift.plan import Plan

__all__ = ["Changed", "HostWeights", "Objects", "Receipt", "Shifter", "Weights"]


class Changed(TrafficError):  # noqa: N818 - says what happened; callers plan anew
    """Reality is neither as a plan found it nor as it makes it: somebody else changed it in between."""


@dataclass(frozen=True, slots=True)
class HostWeights:
    """What one host (or route) answers now.

    ``istio_percent`` is None when it cannot be said: other records stand in the way (``problem`` tells
    which), or the record points to neither gateway. ``prepared`` is True when weights can be changed.
    ``ttl`` is the longest TTL of its records in seconds, None where they have none of their own (an alias).
    """

    host: str
    istio_percent: float | None
    prepared: bool
    weights: Mapping[str, int] = field(default_factory=dict)
    problem: str = ""
    ttl: int | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights read back from the provider; ``istio_percent`` is None unless every host agrees exactly."""

    istio_percent: int | None
    hosts: Mapping[str, HostWeights]

    @property
    def prepared(self) -> bool:
        """True when every host can take a weight."""
        return bool(self.hosts) and all(h.prepared for h in self.hosts.values())

    @property
    def problems(self) -> tuple[str, ...]:
        """What stands in the way, one sentence a host."""
        return tuple(h.problem for h in self.hosts.values() if h.problem)


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that a plan was accepted by the provider and read back.

    ``accepted_at`` is unix seconds; ``took_s`` the seconds from the call to the acceptance. ``changed`` is
    False when everything already was as planned. ``wait_out_s`` is how long caches may still hold an
    answer with a longer TTL than the one in force now; to be waited out before the first shift.
    """

    mechanism: str
    plan_digest: str
    change_ids: tuple[str, ...]
    accepted_at: float
    took_s: float
    changed: bool
    wait_out_s: float = 0.0


@runtime_checkable
class Shifter(Protocol):
    """Moves traffic between APISIX and Istio. All calls are idempotent; all errors are ``TrafficError``."""

    @property
    def name(self) -> str:
        """The mechanism's name as params spell it."""

    def read(self) -> Weights:
        """Read the weights as they are."""

    def prepare_plan(self) -> Plan:
        """Plan what makes weights possible, without moving anybody."""

    def plan(self, percent: int, *, of: int = 100) -> Plan:
        """Plan the change that gives Istio *percent* of *of* parts; 0 is the way back and minds no obstacle.

        *of* below 100 is for a second mechanism that moves only what the first has left.
        """

    def set(self, plan: Plan) -> Receipt:
        """Carry out *plan* and read it back; refuse when reality is neither its before nor its after."""

    def confirm(self, receipt: Receipt) -> float:
        """Wait until the change is everywhere; return the seconds since it was accepted."""

    def settle_plan(self, snapshot: Mapping[str, Any]) -> Plan:
        """Plan the end of a migration: what was changed only to move (a short TTL) as *snapshot* has it."""

    def check_access(self) -> None:
        """Raise unless the credentials may also write; changes nothing."""

    def snapshot(self) -> dict[str, Any]:
        """Return everything needed to restore today's state exactly, as plain JSON."""

    def restore_plan(self, snapshot: Mapping[str, Any]) -> Plan:
        """Plan the change back to *snapshot*."""


class Objects(Protocol):
    """The Kubernetes objects that a shifter reads and replaces; the cluster room's client is one."""

    def get(self, kind: str, name: str, namespace: str | None = None) -> dict[str, Any] | None:
        """Return one object or None."""

    def list(self, kind: str, namespace: str | None = None, *, labels: str = "") -> list[dict[str, Any]]:
        """Return all objects of a kind."""

    def update(self, obj: dict[str, Any]) -> dict[str, Any]:
        """Replace; refused when the object's resourceVersion is not the newest."""
