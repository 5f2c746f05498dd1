"""The archive's Helm values, rendered by Helm with Istio's own charts, against the IstioOperator file."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateshift.cluster import install, operator
from gateshift.cluster.objects import Object, title_of
from gateshift.lab import build
from gateshift.params.model import Params
from tests.cluster.conftest import make_params
from tests.tools import tool

pytestmark = [pytest.mark.slow, pytest.mark.long]  # builds istioctl and helm, once a machine

CHARTS = {"base": "base", "istiod": "istio-control/istio-discovery", "gateway": "gateway"}
HOME = "istio-system"

EVERYTHING: dict[str, Any] = {
    "revision": "next",
    "gateway_service": "edge",
    "external_traffic_policy": "Local",
    "load_balancer_class": "service.k8s.aws/nlb",
    "gateway_annotations": {"service.beta.kubernetes.io/aws-load-balancer-scheme": "internet-facing"},
}
_SMALL = {"cpu_request": "100m", "cpu_limit": "1000m", "memory_request": "128Mi", "memory_limit": "1Gi"}
SINGLE: dict[str, Any] = {
    part: {"replicas_min": 1, "replicas_max": 2, "resources": _SMALL} for part in ("gateway", "istiod")
}
CASES: dict[str, dict[str, Any]] = {"as the guide": {}, "beside another Istio": EVERYTHING, "single": SINGLE}

# Who installed it: Helm and istioctl write their own names.
INSTALLER = (
    *("app.kubernetes.io/", "helm.sh/", "operator.istio.io/", "install.operator.istio.io/"),
    *("release", "chart", "heritage"),
)


@pytest.fixture(scope="module")
def istioctl() -> str:
    return build.ensure()["istioctl"]


@pytest.fixture(scope="module")
def charts(istioctl: str) -> Path:
    """The charts of the very version that istioctl has in it: its module's folder."""
    del istioctl  # built first: then the module is on this machine
    command = [build.find_go((1, 26)), "mod", "download", "-json", "istio.io/istio"]
    where = Path(build.__file__).parent / "build" / "istio"
    done = subprocess.run(command, cwd=where, check=True, capture_output=True, text=True, timeout=300)
    return Path(json.loads(done.stdout)["Dir"]) / "manifests" / "charts"


@pytest.fixture(scope="module", params=list(CASES))
def params(request: pytest.FixtureRequest, istioctl: str) -> Params:
    return make_params(istio={"istioctl": istioctl, **CASES[request.param]})


def template(chart: str, charts: Path, params: Params, folder: Path) -> dict[str, Object]:
    values = folder / f"values-{chart}.yaml"
    values.write_text(yaml.safe_dump(operator.helm_values(params)[chart]), encoding="utf-8")
    release = params.istio.gateway_service if chart == "gateway" else f"istio-{chart}"
    command = [str(tool("helm")), "template", release, str(charts / CHARTS[chart])]
    command += ["--namespace", HOME, "--include-crds", "--values", str(values)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return {title_of(o): without_installer(o) for o in yaml.safe_load_all(done.stdout) if o}


def without_installer(obj: Object) -> Object:
    def walk(value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, dict):
            yield value
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from walk(inner)

    found = copy.deepcopy(obj)
    for one in walk(found):
        labels = one.get("labels")
        if isinstance(labels, dict):
            one["labels"] = {k: v for k, v in labels.items() if not k.startswith(INSTALLER)}
    return found


def of_operator(params: Params) -> dict[str, Object]:
    return {title_of(o): without_installer(o) for o in install.manifests(params)}


def test_base_and_istiod_are_the_same_objects(charts: Path, params: Params, tmp_path: Path) -> None:
    by_helm = template("base", charts, params, tmp_path) | template("istiod", charts, params, tmp_path)
    gateway = params.istio.gateway_service
    by_operator = {t: o for t, o in of_operator(params).items() if gateway not in t}
    assert len(by_operator) > 25
    # The validator of the default revision; `istioctl install` adds it at its end, by a chart of its own.
    assert set(by_helm) - set(by_operator) == {"ValidatingWebhookConfiguration istiod-default-validator"}
    assert set(by_operator) <= set(by_helm)
    differ = {t for t in by_operator if by_operator[t] != by_helm[t]}
    revision = f"-{params.istio.revision}" if params.istio.revision else ""
    assert differ == {f"ConfigMap istio-system/values{revision}"}  # the record of the values themselves


def test_the_gateway_serves_and_scales_the_same(charts: Path, params: Params, tmp_path: Path) -> None:
    name = params.istio.gateway_service
    by_helm = template("gateway", charts, params, tmp_path)
    by_operator = {t: o for t, o in of_operator(params).items() if name in t}
    kinds = {"Deployment", "HorizontalPodAutoscaler", "Service"}
    if params.istio.gateway.replicas_min > 1:
        kinds.add("PodDisruptionBudget")
    same = {f"{kind} {HOME}/{name}" for kind in kinds}
    # The two charts call the account and its rights differently.
    accounts = {"ServiceAccount": "-service-account", "Role": "-sds", "RoleBinding": "-sds"}
    assert set(by_helm) == same | {f"{kind} {HOME}/{name}" for kind in accounts}
    assert set(by_operator) == same | {f"{k} {HOME}/{name}{end}" for k, end in accounts.items()}
    for title in same - {f"Deployment {HOME}/{name}"}:
        ours, theirs = by_operator[title], by_helm[title]
        assert ours["spec"] == theirs["spec"], title
        notes = [o["metadata"].get("annotations") or {} for o in (ours, theirs)]
        assert notes[0] == notes[1], title
    rights = [
        o[t]["rules"] for o, t in ((by_operator, f"Role {HOME}/{name}-sds"), (by_helm, f"Role {HOME}/{name}"))
    ]
    assert rights[0] == rights[1]


def test_the_gateways_pods_differ_only_in_who_completes_them(
    charts: Path, params: Params, tmp_path: Path
) -> None:
    """istioctl writes the whole container; by the chart istiod's webhook does when a pod is made."""
    title = f"Deployment {HOME}/{params.istio.gateway_service}"
    ours, theirs = (
        of_operator(params)[title]["spec"],
        template("gateway", charts, params, tmp_path)[title]["spec"],
    )
    assert _differ(ours, theirs) == {"template"}
    assert _differ(ours["template"], theirs["template"]) == {"metadata", "spec"}
    assert _differ(ours["template"]["spec"], theirs["template"]["spec"]) == {
        *("containers", "securityContext", "serviceAccountName", "volumes"),
        "terminationGracePeriodSeconds",  # 30, which is what Kubernetes gives where none is named
    }
    (mine,), (chart,) = ours["template"]["spec"]["containers"], theirs["template"]["spec"]["containers"]
    assert _differ(mine, chart) == {
        *("args", "env", "image", "ports", "readinessProbe", "securityContext", "volumeMounts"),
    }
    assert chart["image"] == "auto"
    assert theirs["template"]["metadata"]["labels"]["sidecar.istio.io/inject"] == "true"
    assert theirs["template"]["metadata"]["annotations"]["inject.istio.io/templates"] == "gateway"
    assert all(one in mine["env"] for one in chart["env"])
    for labels in (ours["selector"]["matchLabels"], operator.gateway_selector(params.istio)):
        for spec in (ours, theirs):
            assert labels.items() <= spec["template"]["metadata"]["labels"].items()


def _differ(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """Name the fields that differ; a field that is null is one that is not there."""

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {k: bare(v) for k, v in value.items()}
            return {k: v for k, v in kept.items() if v is not None and v != {}}
        return [bare(v) for v in value] if isinstance(value, list) else value

    first, second = bare(one), bare(other)
    return {k for k in first.keys() | second.keys() if first.get(k) != second.get(k)}
