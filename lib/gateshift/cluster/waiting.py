"""Why a Deployment is not ready: the reason in words, instead of a time-out."""

from __future__ import annotations

import re
import time
from collections.abc import Collection

from gateshift.cluster.client import Cluster
from gateshift.cluster.failures import HopelessError
from gateshift.cluster.gateways import pod_ready, selector_text
from gateshift.cluster.objects import Object, name_of
from gateshift.cluster.operator import istiod_name
from gateshift.errors import ClusterError
from gateshift.params.model import Params

__all__ = ["Hope", "deployment_standing", "hopeless", "pod_problem", "reasons", "refused_pods"]

_PATIENCE = 45.0
"""Seconds for which a reason that does not heal by itself (image, quota, crash) may stand."""

_NO_ACCOUNT = "error looking up service account"
_POD = re.compile(r'pods "[^"]*"')

_WAITS_FOREVER = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "CreateContainerConfigError",
        "CreateContainerError",
        "CrashLoopBackOff",
        "RunContainerError",
    }
)


def deployment_standing(deployment: Object | None) -> str:
    """Return an empty text when the Deployment is rolled out and ready, else how far it is."""
    if deployment is None:
        return "not created yet"
    status = deployment.get("status", {})
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return "the controller has not seen the new version yet"
    wanted = deployment["spec"].get("replicas", 1)
    updated, ready = status.get("updatedReplicas", 0), status.get("readyReplicas", 0)
    if updated < wanted or ready < wanted or status.get("replicas", 0) > wanted:
        return f"{ready} of {wanted} pods ready"
    return ""


def pod_problem(pod: Object) -> str:
    """Return what keeps one pod from being ready, or an empty text."""
    if pod_ready(pod):
        return ""
    status = pod.get("status", {})
    name = name_of(pod)
    for state in (status.get("initContainerStatuses") or []) + (status.get("containerStatuses") or []):
        waiting = state.get("state", {}).get("waiting")
        if waiting and waiting.get("reason") not in {None, "PodInitializing", "ContainerCreating"}:
            return f"{name}/{state['name']}: {waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
        ended = state.get("state", {}).get("terminated") or state.get("lastState", {}).get("terminated")
        if ended and ended.get("exitCode"):
            return f"{name}/{state['name']}: ended with code {ended['exitCode']} ({ended.get('reason', '')})"
    for condition in status.get("conditions") or []:
        if condition.get("status") == "False" and condition.get("message"):
            return f"{name}: {condition.get('reason', '')}: {condition['message']}"
    return f"{name}: {status.get('phase', 'no status yet')}"


def reasons(cluster: Cluster, namespace: str, name: str) -> list[str]:
    """Collect why a Deployment is not ready: conditions, pods, warning events."""
    try:
        deployment = cluster.get("Deployment", name, namespace)
        if deployment is None:
            return [f"Deployment {namespace}/{name} does not exist"]
        found = [
            f"{c.get('reason', '')}: {c['message']}"
            for c in deployment.get("status", {}).get("conditions") or []
            if (c.get("type") == "ReplicaFailure" and c.get("status") == "True")
            or (c.get("reason") == "ProgressDeadlineExceeded")
        ]
        labels = selector_text((deployment["spec"].get("selector") or {}).get("matchLabels") or {})
        pods = cluster.list("Pod", namespace, labels=labels)
        found += [problem for pod in pods if (problem := pod_problem(pod))]
        names = {name, *map(name_of, pods)}
        for event in cluster.list("Event", namespace, fields="type=Warning"):
            about = event.get("involvedObject", {}).get("name", "")
            if about in names or about.startswith(f"{name}-"):
                found.append(f"{about}: {event.get('reason', '')}: {event.get('message', '')}")
    except ClusterError as error:
        return [f"the reason cannot be read: {error}"]
    return list(dict.fromkeys(found))[:6]


def refused_pods(cluster: Cluster, namespace: str, name: str) -> dict[str, str]:
    """Return why the API server refused pods of a Deployment, by the event that tells it (newest last).

    A condition keeps the first reason for ever, and that is the missing account: installers make it after
    the Deployment. What came later is told by events alone.
    """
    sets = {
        name_of(one)
        for one in cluster.list("ReplicaSet", namespace)
        if (name, "Deployment")
        in {(o["name"], o["kind"]) for o in one["metadata"].get("ownerReferences") or []}
    }
    events = [
        e
        for e in cluster.list("Event", namespace, fields="type=Warning")
        if e.get("reason") == "FailedCreate"
        and e.get("involvedObject", {}).get("name") in sets
        and _NO_ACCOUNT not in e.get("message", "")
    ]
    events.sort(key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime")))
    return {
        f"{name_of(e)} {e.get('count')} {e.get('lastTimestamp')}": _without_name(
            f"FailedCreate: {str(e.get('message', '')).removeprefix('Error creating: ')}"
        )
        for e in events
    }


def _without_name(message: str) -> str:
    """Each attempt makes up another name; the same cause must read the same."""
    return _POD.sub("pods", message)


def hopeless(cluster: Cluster, namespace: str, name: str, *, before: Collection[str] = ()) -> list[str]:
    """Return what keeps a Deployment from becoming ready and does not heal by waiting: image, quota, crash.

    A pod without a node is not in it: an autoscaler may bring one. Refusals that were told *before* (keys of
    :func:`refused_pods`) do not count: their cause may be gone, and the controller only waits to try again.
    """
    deployment = cluster.get("Deployment", name, namespace)
    if deployment is None or not deployment_standing(deployment):
        return []
    failing = [
        _without_name(f"{c.get('reason', '')}: {c.get('message', '')}")
        for c in deployment.get("status", {}).get("conditions") or []
        if c.get("type") == "ReplicaFailure" and c.get("status") == "True"
    ]
    # An install that was cut short left the Deployment without its account; going on makes it, and the
    # controller tries again by itself, after a back-off.
    found = [one for one in failing if _NO_ACCOUNT not in one]
    if failing and not found:
        told = refused_pods(cluster, namespace, name)
        found = [message for key, message in told.items() if key not in before][-1:]
    labels = selector_text((deployment["spec"].get("selector") or {}).get("matchLabels") or {})
    for pod in cluster.list("Pod", namespace, labels=labels):
        status = pod.get("status", {})
        for state in (status.get("initContainerStatuses") or []) + (status.get("containerStatuses") or []):
            waiting = state.get("state", {}).get("waiting") or {}
            if waiting.get("reason") in _WAITS_FOREVER:
                # Without the pod's name and the changing back-off: the same cause must read the same.
                found.append(
                    f"container {state['name']}: {waiting['reason']} (image {state.get('image', '?')})"
                )
    return list(dict.fromkeys(found))


class Hope:
    """Ends a wait that cannot succeed: a missing image or a quota is told at once, not by a time-out."""

    def __init__(self, params: Params, cluster: Cluster) -> None:
        self._params, self._cluster = params, cluster
        self._patience = min(_PATIENCE, params.istio.ready_timeout / 3)
        self._since: dict[str, float] = {}
        self._before: dict[str, frozenset[str]] = {}

    def look(self) -> None:
        """Raise :class:`HopelessError` with the reason when one has stood for too long.

        What was refused before the first look does not count.
        """
        istio = self._params.istio
        now = time.monotonic()
        names = (istiod_name(istio), istio.gateway_service)
        if not self._before:
            told = {n: frozenset(refused_pods(self._cluster, istio.namespace, n)) for n in names}
            self._before = told
        found = [
            f"{name}: {reason}"
            for name in names
            for reason in hopeless(self._cluster, istio.namespace, name, before=self._before[name])
        ]
        self._since = {reason: self._since.get(reason, now) for reason in found}
        lasting = [reason for reason, since in self._since.items() if now - since >= self._patience]
        if lasting:
            raise HopelessError(
                f"Istio cannot become ready: {'; '.join(lasting)}",
                hint="remove the cause and run 10_install again: it continues where it stopped",
            )

    def look_while_another_works(self) -> None:
        """As :meth:`look`; an API server that does not answer for a moment is no reason to end istioctl."""
        try:
            self.look()
        except HopelessError:
            raise
        except ClusterError:
            return  # istioctl has a time limit of its own
