"""What the users saw against what the backends did: an error no backend made was made by a gateway."""

from __future__ import annotations

import httpx

from gateshift.lab.state import LabState

__all__ = ["PATIENCE", "ClientLedger"]

PATIENCE = 30.0
"""Seconds for an answer of the lab's clients and backends, which share a busy machine with all the rest."""


class ClientLedger:
    """Counts from now on. Both sides' accounts are started anew."""

    def __init__(self, lab: LabState) -> None:
        self._clients = str(lab["traffic_url"])
        self._backends = str(lab["faults_url"])
        for url in (self._clients, self._backends):
            httpx.delete(f"{url}/stats", timeout=PATIENCE).raise_for_status()

    def unexplained(self) -> list[str]:
        """Return a sentence for errors that the backends did not make; empty when every error is explained.

        A client error is a 5xx, a gRPC error status, a broken connection, or any other status than the call
        expects (a 404 on a path that must exist is an error here, too).
        """
        problems = httpx.get(f"{self._clients}/errors", timeout=PATIENCE).json()
        gateways = httpx.get(f"{self._backends}/stats", timeout=PATIENCE).json()["gateways"]
        made = sum(g["errors"] + g["cut"] + g["hung"] for g in gateways.values())
        if len(problems) <= made:
            return []
        examples = "; ".join(
            f"{p['gateway']} {p['protocol']} {p['call']}: {p['status'] or p['error']}" for p in problems[:3]
        )
        return [f"clients saw {len(problems)} errors, the backends made {made}: {examples}"]

    def requests(self) -> int:
        """Requests the clients sent."""
        summary = httpx.get(f"{self._clients}/stats", timeout=PATIENCE).json()
        return int(sum(side["requests"] for side in summary["gateways"].values()))
