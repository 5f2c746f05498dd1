"""The ends of several pods' logs, side by side."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from gateshift.cluster.client import Cluster
from gateshift.cluster.objects import Object, name_of

__all__ = ["tails"]

_LINES = 1000
_LINE_BYTES = 4096


def tails(cluster: Cluster, namespace: str, pods: Sequence[Object]) -> list[str]:
    """Return the end of each pod's log; a pod without one (not started yet) hides no other.

    Raises the first error when no pod has a log that can be read.
    """
    found: dict[str, str] = {}
    failed: list[Exception] = []

    def one(pod: Object) -> None:
        names = [c.get("name") for c in pod["spec"].get("containers") or []]
        try:
            found[name_of(pod)] = cluster.log(
                namespace,
                name_of(pod),
                container="istio-proxy" if "istio-proxy" in names else "",
                tail=_LINES,
                limit=_LINES * _LINE_BYTES,
            )
        except Exception as error:  # noqa: BLE001 - raised below, if no pod has a log
            failed.append(error)

    # Daemons, not a pool: at its end a program waits for a pool's threads, however long they take.
    threads = [threading.Thread(target=one, args=(pod,), daemon=True) for pod in pods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed and not found:
        raise failed[0]
    return [text for _, text in sorted(found.items())]
