"""Everything that would stop the migration later, measured before: all checks side by side, under 20 s."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gateshift.cluster import (
    preflight_apisix,
    preflight_capacity,
    preflight_cluster,
    preflight_network,
    preflight_systems,
    preflight_traps,
)
from gateshift.cluster.checks import Check, Item, Status, run_items
from gateshift.cluster.client import Cluster
from gateshift.cluster.reach import Reach
from gateshift.params.model import Params

__all__ = ["Check", "Status", "items", "run"]

LIMIT = 19.0
"""Seconds after which a check without an answer counts as failed."""


def items(
    params: Params,
    cluster: Cluster,
    *,
    read_traffic: Callable[[], object] | None = None,
    read_metrics: Callable[[], float | None] | None = None,
    translated: Callable[[], Iterable[Mapping[str, Any]]] | None = None,
) -> tuple[Item, ...]:
    """Return what is checked, in the order of the table."""
    reach = Reach(params, translated)
    return (
        *preflight_cluster.items(params, cluster),
        *preflight_network.items(params, cluster, reach),
        *preflight_capacity.items(params, cluster, reach),
        *preflight_apisix.items(params, cluster),
        *preflight_traps.items(params, cluster, reach),
        *preflight_systems.items(
            params, cluster, reach, read_traffic=read_traffic, read_metrics=read_metrics
        ),
    )


def run(
    params: Params,
    cluster: Cluster,
    *,
    progress: Callable[[str], None] | None = None,
    read_traffic: Callable[[], object] | None = None,
    read_metrics: Callable[[], float | None] | None = None,
    translated: Callable[[], Iterable[Mapping[str, Any]]] | None = None,
    only: Sequence[str] = (),
    limit: float = LIMIT,
) -> tuple[Check, ...]:
    """Run every check and return all outcomes, even when some fail.

    *read_traffic* reads the weights from the DNS provider, *read_metrics* the APISIX requests of the last
    scrapes (None = unknown), *translated* gives the objects that the translation makes (hosts and backends
    are then known). *only* restricts to items by name.
    """
    chosen = [
        item
        for item in items(
            params, cluster, read_traffic=read_traffic, read_metrics=read_metrics, translated=translated
        )
        if not only or item.name in only
    ]
    return run_items(chosen, limit=limit, progress=progress)
