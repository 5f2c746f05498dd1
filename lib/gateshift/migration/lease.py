"""The Lease in the cluster: one migration at a time for everybody who uses it. It keeps the heads, too."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from gateshift.errors import ExternalError, LockHeld
from gateshift.migration.identity import Process
from gateshift.migration.lock import TTL, Renewing, ticks, watched_for

__all__ = ["LeaseApi", "LeaseLock"]


class LeaseApi(Protocol):
    """The three calls a Lease lock makes. A lost race is an error with ``status`` 409."""

    def lease_get(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """Return the Lease or None."""

    def lease_create(self, namespace: str, name: str, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """Create it."""

    def lease_update(self, lease: dict[str, Any]) -> Mapping[str, Any]:
        """Replace it, refused when its resourceVersion is not the newest."""


class LeaseLock(Renewing):
    """A ``coordination.k8s.io/v1`` Lease: one migration at a time for everybody who uses the cluster."""

    def __init__(
        self,
        api: LeaseApi,
        namespace: str,
        name: str,
        ttl: float = TTL,
        *,
        who: str = "",
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.process = Process.current()
        super().__init__(who or f"pid {self.process.pid} on {self.process.host}", ttl)
        self.api, self.namespace, self.name = api, namespace, name
        self._sleep, self._clock = sleep, clock
        self._identity = f"{self.who} {self.process.text()} {uuid.uuid4().hex[:8]}"
        self._lease: dict[str, Any] = {}
        self._calls = threading.RLock()
        self.annotate: Callable[[], Mapping[str, str]] = dict
        """Annotations to put on the Lease with each renewal; it must not raise."""

    @property
    def transitions(self) -> int:
        """How often the Lease changed hands: the cluster's own fencing token."""
        return int(self._lease.get("spec", {}).get("leaseTransitions") or 0)

    @property
    def annotations(self) -> dict[str, str]:
        """The Lease's annotations as last read."""
        return dict((self._lease.get("metadata") or {}).get("annotations") or {})

    def renew(self) -> None:
        """Renew now, for instance to publish new annotations; errors are left to :meth:`check`."""
        try:
            self._renew()
        except (ExternalError, OSError):
            return
        except LockHeld as error:
            self._lose(str(error))

    def acquire(self) -> None:
        """Take the Lease or raise :class:`~gateshift.errors.LockHeld` naming the holder."""
        found = self.api.lease_get(self.namespace, self.name)
        if found is None:
            self._lease = self._race(lambda: self.api.lease_create(self.namespace, self.name, self._spec({})))
        else:
            lease = self._expired(dict(found))
            lease["spec"] = self._spec(lease.get("spec") or {})
            self._lease = self._race(lambda: self.api.lease_update(lease))
        self._begin()

    def release(self) -> None:
        """Give the Lease back; a Lease that somebody else has is left alone."""
        if not self._lease:
            return
        held = self.held
        self._end()
        lease, self._lease = self._lease, {}
        if not held:
            return
        try:
            self.api.lease_update(self._freed(lease))
        except ExternalError as error:
            if getattr(error, "status", None) != 409:
                return  # it expires by itself; a migration must not fail at its last step for that
            self._free_newest()

    def _freed(self, lease: Mapping[str, Any]) -> dict[str, Any]:
        free = {**lease["spec"], "holderIdentity": "", "renewTime": _micro(self._clock())}
        return self._annotated({**lease, "spec": free})

    def _free_newest(self) -> None:
        """Somebody annotated the Lease meanwhile: free the newest version if it is still ours."""
        try:
            found = self.api.lease_get(self.namespace, self.name)
            if found is not None and (found.get("spec") or {}).get("holderIdentity") == self._identity:
                self.api.lease_update(self._freed(found))
        except ExternalError:
            return

    def _renew(self) -> None:
        with self._calls:
            if not self._lease:
                return
            spec = {**self._lease["spec"], "renewTime": _micro(self._clock())}
            lease = self._annotated({**self._lease, "spec": spec})
            begun = ticks()
            try:
                self._lease = dict(self.api.lease_update(lease))
            except ExternalError as error:
                if getattr(error, "status", None) not in {404, 409}:
                    raise
                # Our own renewal may have arrived though its answer did not; only another holder is a loss.
                found = self.api.lease_get(self.namespace, self.name)
                if found is None:  # deleted, not taken over: it is made anew unless somebody is faster
                    spec = self._spec(spec)
                    found = self._race(lambda: self.api.lease_create(self.namespace, self.name, spec))
                if (found.get("spec") or {}).get("holderIdentity") != self._identity:
                    raise LockHeld(f"the lock was taken over: {_holder(found)}") from None
                self._lease = dict(found)
            self._renewed = begun

    def _annotated(self, lease: Mapping[str, Any]) -> dict[str, Any]:
        metadata = dict(lease.get("metadata") or {})
        metadata["annotations"] = {**(metadata.get("annotations") or {}), **self.annotate()}
        return {**lease, "metadata": metadata}

    def _spec(self, before: Mapping[str, Any]) -> dict[str, Any]:
        now = _micro(self._clock())
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self.ttl)),
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + 1,
        }

    def _expired(self, lease: dict[str, Any]) -> dict[str, Any]:
        """Return the Lease to take over, or raise: it must be free, of a dead process, or expired."""
        spec = lease.get("spec") or {}
        identity = str(spec.get("holderIdentity") or "")
        if not identity:
            return lease
        words = identity.split(" ")
        process = Process.parse(words[-2]) if len(words) >= 3 else None
        if process is not None and process.surely_dead:
            return lease
        duration = float(spec.get("leaseDurationSeconds") or self.ttl)
        left = _unix(spec.get("renewTime")) + duration - self._clock()
        pause = watched_for(left, duration)
        if not pause:
            raise LockHeld(f"{_holder(lease)}; it expires in {left:.0f} s unless renewed")
        self._sleep(pause)
        again = self.api.lease_get(self.namespace, self.name)
        version = (again or {}).get("metadata", {}).get("resourceVersion")
        if again is None or version != lease.get("metadata", {}).get("resourceVersion"):
            raise LockHeld(f"{_holder(again or lease)}; it is still being renewed")
        return lease

    def _race(self, call: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        try:
            return dict(call())
        except ExternalError as error:
            if getattr(error, "status", None) != 409:
                raise
            found = self.api.lease_get(self.namespace, self.name)
            raise LockHeld(f"{_holder(found)}; it was faster") from None


def _holder(lease: Mapping[str, Any] | None) -> str:
    identity = str(((lease or {}).get("spec") or {}).get("holderIdentity") or "somebody")
    words = identity.split(" ")
    return f"{' '.join(words[:-2]) or identity} holds the migration's Lease"


def _micro(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _unix(text: object) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return 0.0
