"""Install Istio beside what is there: plan as a diff, ``istioctl install``, and proof that it answers."""

from __future__ import annotations

import copy
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from gateshift.cluster.client import ApiError, Cluster
from gateshift.cluster.failures import HopelessError
from gateshift.cluster.gateways import load_balancer_name, watch
from gateshift.cluster.objects import Object, clean, diff_text, identity, name_of, title_of
from gateshift.cluster.operator import helm_values, istiod_name, render
from gateshift.cluster.ownership import OWNER, is_ours, is_shared, owner_of, owner_selector
from gateshift.cluster.tools import (
    cluster_flags,
    environment,
    find_tool,
    last_lines,
    run_istioctl,
    run_tool,
)
from gateshift.cluster.waiting import Hope, deployment_standing, reasons
from gateshift.errors import Blocked, ClusterError
from gateshift.params.model import Params
from gateshift.plan import Plan, Step, digest_of

__all__ = [
    "answers",
    "execute",
    "helm_values",
    "manifests",
    "owners",
    "plan",
    "precheck",
    "render",
    "wait_ready",
]

Progress = Callable[[str], None]


def manifests(params: Params) -> list[Object]:
    """Return what istioctl would apply for these params (no cluster is asked)."""
    return copy.deepcopy(_generated(params.istio.istioctl, render(params)))


@lru_cache(maxsize=4)
def _generated(istioctl: str, operator: str) -> list[Object]:
    """Keep what istioctl makes of a file: plan, snapshot and execution ask for the same within seconds."""
    with _operator_file(operator) as path:
        printed = run_tool([istioctl, "manifest", "generate", "-f", path], timeout=60)
    return [o for o in yaml.load_all(printed, Loader=_Loader) if isinstance(o, dict) and o.get("kind")]


def owners(cluster: Cluster, params: Params) -> list[str]:
    """Name the istiods that are there and not ours: other revision, or another installer's."""
    ours = (params.istio.namespace, istiod_name(params.istio))
    found = []
    for deployment in cluster.list("Deployment", labels="app=istiod"):
        where = (deployment["metadata"]["namespace"], deployment["metadata"]["name"])
        revision = (deployment["metadata"].get("labels") or {}).get("istio.io/rev", "default")
        if where != ours:
            found.append(f"{where[0]}/{where[1]} (revision {revision})")
        elif not is_ours(deployment, params):
            found.append(f"{where[0]}/{where[1]} installed by {owner_of(deployment)}")
    return found


def plan(params: Params, cluster: Cluster) -> Plan:
    """Compare what istioctl would apply with the cluster, by server-side dry runs.

    Raises :class:`Blocked` when an Istio of another owner has the same name: taking it over is a
    person's decision.
    """
    strangers = [o for o in owners(cluster, params) if " installed by " in o]
    if strangers:
        raise Blocked(
            f"another installer owns {', '.join(strangers)}",
            hint="set istio.revision to install beside it, or remove that Istio with its own installer",
        )
    wanted = manifests(params)
    namespace: Object = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": params.istio.namespace},
    }
    steps: list[Step] = []
    if cluster.get("Namespace", params.istio.namespace) is None:
        steps.append(Step("create", title_of(namespace), None, {"digest": digest_of(namespace)}))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda o: _step(params, cluster, o), wanted))
    foreign = [text for text, _ in found if text]
    if foreign:
        raise Blocked(
            f"these belong to another installation and would be overwritten: {', '.join(foreign)}",
            hint="set istio.revision and an istio.gateway_service of your own (or another istio.namespace), "
            "so that the Istio that is there stays untouched",
        )
    steps += [step for _, step in found if step]
    steps += _pruned(params, cluster, wanted)
    return Plan(
        kind="install",
        title=f"Istio {params.istio.version}: {len(steps)} of {len(wanted) + 1} objects would change",
        steps=tuple(steps),
        way_back="gateshift uninstall removes what this creates; APISIX and DNS are not touched",
        inputs={"operator": digest_of(render(params)), "cluster": cluster.uid},
    )


def _step(params: Params, cluster: Cluster, wanted: Object) -> tuple[str, Step | None]:
    """Return whose the object is, when it is another installation's, and what would change."""
    if not cluster.serves(f"{wanted['apiVersion']}/{wanted['kind']}"):
        return "", Step("create", title_of(wanted), None, {"digest": digest_of(wanted)})
    metadata = wanted["metadata"]
    live = cluster.get(
        f"{wanted['apiVersion']}/{wanted['kind']}", metadata["name"], metadata.get("namespace")
    )
    if live is None:
        return "", Step("create", title_of(wanted), None, {"digest": digest_of(wanted)})
    shared = is_shared(wanted)
    if not shared and not is_ours(live, params):
        return f"{title_of(wanted)} (of {owner_of(live)})", None
    before = _stable(live)
    after = _stable(cluster.apply(wanted, dry_run=True, manager=OWNER, force=True))
    if before == after:
        return "", None
    text = diff_text(before, after)
    if len(text) > 4000:
        text = text[:4000] + "\n… (cut)"
    if shared and not is_ours(live, params):
        text = f"shared with {owner_of(live)}; the uninstall puts it back\n{text}"
    return "", Step(
        "change", title_of(wanted), {"digest": digest_of(before)}, {"digest": digest_of(after)}, note=text
    )


def _pruned(params: Params, cluster: Cluster, wanted: list[Object]) -> list[Step]:
    """Return what istioctl deletes by itself: objects of this installation that are not wanted any more."""
    keep = {identity(o) for o in wanted}
    steps = []
    for kind in ("Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"):
        for obj in cluster.list(kind, params.istio.namespace, labels=owner_selector(params)):
            # Revision tags are made after the pruning, from a chart of their own.
            tag = "-revision-tag-" in name_of(obj)
            component = "operator.istio.io/component" in obj["metadata"]["labels"]
            if identity(obj) not in keep and component and not tag:
                steps.append(Step("delete", title_of(obj), {"uid": obj["metadata"]["uid"]}, None, "pruned"))
    return steps


def _stable(obj: Object) -> Any:
    """Drop what istiod and the HPA write into their own objects after the install."""
    out = clean(obj) or {}
    labels = out["metadata"].get("labels") or {}
    for label in [k for k in labels if "operator.istio.io/" in k or k == "istio.io/rev"]:
        del labels[label]  # `istioctl install` adds them, `istioctl manifest generate` does not
    if "webhooks" in out:
        # istiod writes its CA and turns the failure policy to Fail once ready; the installer turns the
        # selectors off where a revision tag takes over.
        out["webhooks"] = sorted(hook["name"] for hook in out["webhooks"])
    if out.get("kind") == "Deployment":
        out["spec"].pop("replicas", None)
        out["metadata"].get("annotations", {}).pop("deployment.kubernetes.io/revision", None)
        if not out["metadata"].get("annotations"):
            out["metadata"].pop("annotations", None)
    if out.get("kind") == "Service":
        for port in out["spec"].get("ports") or []:
            port.pop("nodePort", None)
    return out


def execute(plan_: Plan, params: Params, cluster: Cluster, progress: Progress | None = None) -> None:
    """Install and wait until istiod and the gateway answer. Safe to repeat after an interruption.

    Raises :class:`Blocked` when the cluster is no longer as planned, :class:`ClusterError` with the real
    reasons (events, images, quota) when a component does not become ready.
    """
    say = progress or (lambda _: None)
    if plan(params, cluster).digest != plan_.digest:
        raise Blocked("the cluster changed since this plan was made", hint="read the new plan and approve it")
    precheck(params)
    with _operator_file(render(params)) as path:
        _run_install(params, cluster, path, say)
    wait_ready(params, cluster, progress=say)


def wait_ready(params: Params, cluster: Cluster, *, progress: Progress | None = None) -> None:
    """Wait until istiod, the gateway, the admission webhook and the load balancer are there.

    Raises :class:`ClusterError` with the real reasons at the end of ``istio.ready_timeout``, or as soon as
    one stands that does not heal by itself.
    """
    say = progress or (lambda _: None)
    for name in (istiod_name(params.istio), params.istio.gateway_service):
        _await_deployment(cluster, params, name, say)
    watch(
        lambda: answers(cluster, params),
        timeout=params.istio.ready_timeout,
        progress=say,
        subject="istiod",
    )

    def address() -> str:
        try:
            load_balancer_name(cluster, params.istio.namespace, params.istio.gateway_service)
        except ClusterError as error:
            return str(error)
        return ""

    watch(address, timeout=params.istio.ready_timeout, progress=say, subject="load balancer")
    say(f"Istio {params.istio.version} answers")


def precheck(params: Params) -> str:
    """Run ``istioctl x precheck``: it refuses clusters on which Istio cannot work.

    Returns what it said in one line; raises :class:`Blocked` when it found errors.
    """
    # Exit code 79 means "findings"; they are warnings about an existing mesh unless named Error.
    printed = run_istioctl(params, ["experimental", "precheck"], timeout=60, accept=(0, 79))
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("Error")]
    if errors:
        raise Blocked(f"istioctl precheck: {'; '.join(errors[:3])}", hint="follow the messages, then repeat")
    return "; ".join(lines[:3]) or "no findings"


def _run_install(params: Params, cluster: Cluster, path: str, say: Progress) -> None:
    timeout = params.istio.ready_timeout
    command = [
        find_tool(params.istio.istioctl),
        "install",
        "-f",
        path,
        "--skip-confirmation",
        "--readiness-timeout",
        f"{timeout:.0f}s",
        *cluster_flags(params),
    ]
    hoping = Hope(params, cluster)
    hoping.look()  # what was refused before does not count, so it is read before anything begins
    deadline = time.monotonic() + timeout + 60
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment()
        )
        try:
            said = ""
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(1.0)
                standing = _standing(params, cluster)
                if standing != said:
                    say(standing)
                    said = standing
                hoping.look_while_another_works()
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        output.seek(0)
        printed = output.read()
    if process.returncode != 0:
        why = _why(params, cluster)
        raise ClusterError(
            f"istioctl install failed: {last_lines(printed)}"
            + (f". Reasons: {'; '.join(why)}" if why else ""),
            hint="remove the cause and run 10_install again: it continues where it stopped",
        )


def _why(params: Params, cluster: Cluster) -> list[str]:
    """Return why what istioctl left is not ready, as far as the API server answers."""
    try:
        return [
            reason
            for name in (istiod_name(params.istio), params.istio.gateway_service)
            if deployment_standing(cluster.get("Deployment", name, params.istio.namespace))
            for reason in reasons(cluster, params.istio.namespace, name)
        ]
    except ClusterError as error:
        return [f"the reason cannot be read: {error}"]


def _standing(params: Params, cluster: Cluster) -> str:
    parts = []
    for name in (istiod_name(params.istio), params.istio.gateway_service):
        try:
            standing = deployment_standing(cluster.get("Deployment", name, params.istio.namespace))
        except ClusterError as error:
            standing = str(error)
        parts.append(f"{name}: {standing or 'ready'}")
    return ", ".join(parts)


def _await_deployment(cluster: Cluster, params: Params, name: str, say: Progress) -> None:
    namespace = params.istio.namespace
    hoping = Hope(params, cluster)

    def look() -> str:
        standing = deployment_standing(cluster.get("Deployment", name, namespace))
        if standing:
            hoping.look()
        return standing

    try:
        watch(
            look,
            timeout=params.istio.ready_timeout,
            progress=say,
            subject=name,
        )
    except HopelessError:
        raise
    except ClusterError as error:
        why = reasons(cluster, namespace, name)
        raise ClusterError(f"{error}. Reasons: {'; '.join(why) or 'none reported'}") from None


def answers(cluster: Cluster, params: Params) -> str:
    """Return an empty text when istiod's admission webhook judges configuration, else what is wrong.

    A VirtualService that is invalid on purpose is sent as a dry run: only a working path from the API
    server to istiod refuses it with istiod's own words. Nothing is stored.
    """
    if not cluster.serves("VirtualService"):
        return "the CRDs of Istio are not served yet"
    probe: Object = {
        "apiVersion": cluster.resource("VirtualService").api_version,
        "kind": "VirtualService",
        "metadata": {"name": "gateshift-webhook-probe", "namespace": params.istio.namespace},
        "spec": {
            "hosts": ["probe.invalid"],
            "http": [{"route": [{"destination": {"host": "a"}}], "redirect": {"uri": "/"}}],
        },
    }
    try:
        cluster.apply(probe, dry_run=True)
    except ApiError as error:
        if "refused by the admission webhook" in str(error):
            return ""
        return str(error)
    return "the admission webhook is not active yet: an invalid VirtualService was accepted (dry run)"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The C loader where it is compiled in: the CRDs are 20 000 lines."""


class _operator_file:  # noqa: N801 - used as a function
    """A temporary file with the IstioOperator document; gone when the block ends."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __enter__(self) -> str:
        self._folder = tempfile.TemporaryDirectory(prefix="gateshift-")
        path = Path(self._folder.name) / "istio-operator.yaml"
        path.write_text(self._text, encoding="utf-8")
        return str(path)

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()
