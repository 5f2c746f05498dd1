"""What other proxies, control planes and monitored targets do explains nothing at this gateway."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateshift.diagnose.engine import PROBES
from gateshift.diagnose.engine import run as run_probes
from tests.diagnose.test_diagnose import OFFLINE, Context, healthy, obj
from tests.diagnose.test_trees import ask_metrics

READY = "Running"


def istioctl(tmp_path: Path, *answers: dict[str, tuple[str, str]]) -> Context:
    """A context whose `istioctl proxy-status` gives one answer after the other: proxy to (status, sent)."""
    for number, proxies in enumerate(answers):
        told = [
            {
                "node": {"id": f"router~10.0.0.1~{proxy}~x"},
                "genericXdsConfigs": [
                    {"typeUrl": "a/RouteConfiguration", "configStatus": status, "lastUpdated": sent}
                    if status in {"SYNCED", "STALE"}
                    else {"typeUrl": "a/RouteConfiguration", "errorState": {"details": status}}
                ],
            }
            for proxy, (status, sent) in proxies.items()
        ]
        (tmp_path / f"{number}.json").write_text(json.dumps({"resources": told}))
    last = len(answers) - 1
    tool = tmp_path / "istioctl"
    tool.write_text(
        f"#!/bin/sh\nn=$(cat {tmp_path}/n 2>/dev/null || echo 0)\ncat {tmp_path}/$n.json\n"
        f"[ $n -lt {last} ] && n=$((n+1))\necho $n > {tmp_path}/n\n"
    )
    tool.chmod(0o755)
    context = Context(healthy())
    istio = context.params.istio.model_copy(update={"istioctl": str(tool)})
    context.params = context.params.model_copy(update={"istio": istio})
    return context


OURS, OTHER = "g0.istio-system", "cart-1.shop"
OLD, NEW = "2026-01-02T03:04:05Z", "2026-01-02T03:04:09Z"


@pytest.mark.parametrize(
    ("answers", "code", "level"),
    [
        ([{OTHER: ("bad route", OLD)}], "xds-behind", "warning"),
        ([{OURS: ("bad route", OLD)}], "xds-rejected", "error"),
        # Sent a moment ago, and again a moment later: a busy mesh, not a proxy that stands still.
        ([{OURS: ("STALE", OLD)}, {OURS: ("STALE", NEW)}], "xds-behind", "warning"),
        ([{OURS: ("STALE", OLD)}, {OURS: ("SYNCED", NEW)}], "", ""),
        ([{OURS: ("STALE", OLD)}, {OURS: ("STALE", OLD)}], "xds-stale", "error"),
    ],
)
def test_only_our_own_gateway_explains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: Any, code: str, level: str
) -> None:
    monkeypatch.setattr("gateshift.diagnose.routing.AGAIN", 0.0)
    probe = next(p for p in PROBES if p.name == "proxy status")
    causes = run_probes("404", istioctl(tmp_path, *answers), probes=[probe])
    assert [(c.code, str(c.level)) for c in causes] == ([(code, level)] if code else [])


def test_a_refusal_accuses_no_filter_of_others(tmp_path: Path) -> None:
    probe = next(p for p in PROBES if p.name == "proxy status")
    context = istioctl(tmp_path, {OURS: ("route r: bad", OLD)})
    context.cluster.objects.append(obj("EnvoyFilter", "theirs", "bank", spec={"configPatches": []}))
    (cause,) = run_probes("404", context, probes=[probe])
    assert "theirs" not in cause.remedy
    context = istioctl(tmp_path, {OURS: ("route r: bad", OLD)})
    context.cluster.objects += [obj("EnvoyFilter", n, "istio-system", spec={}) for n in ("a", "b")]
    (cause,) = run_probes("404", context, probes=[probe])
    assert "istio-system/a" in cause.remedy
    assert "istio-system/b" in cause.remedy
    assert "delete" not in cause.remedy


def hook(name: str, service: str, namespace: str, *groups: str, bundle: str = "") -> dict[str, Any]:
    client = {"service": {"name": service, "namespace": namespace}, "caBundle": bundle}
    rules = [{"apiGroups": list(groups), "resources": ["*"]}]
    one = {"name": f"{name}.io", "clientConfig": client, "failurePolicy": "Fail", "rules": rules}
    return {**obj("ValidatingWebhookConfiguration", name, ""), "webhooks": [one]}


def webhook_causes(monkeypatch: pytest.MonkeyPatch, *objects: dict[str, Any]) -> list[tuple[str, str, str]]:
    monkeypatch.setattr("gateshift.diagnose.ours.answers", lambda *_: "")
    context = Context([*healthy(), *objects])
    probe = next(p for p in PROBES if p.name == "webhook")
    return [(c.code, str(c.level), c.remedy) for c in run_probes("webhook", context, probes=[probe])]


def test_a_stray_webhook_of_something_else_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = hook("cert-manager", "gone", "cm", "cert-manager.io")
    ((code, level, _),) = webhook_causes(monkeypatch, theirs)
    assert (code, level) == ("webhook-service", "warning")
    ((code, level, remedy),) = webhook_causes(monkeypatch, hook("policy", "gone", "p", "*"))
    assert (code, level) == ("webhook-service", "error")
    assert "its checks are then off" in remedy


def test_a_webhook_of_another_control_plane_has_its_own_ca(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "gateshift.diagnose.ours._certificates", lambda text: {text.encode()} if text else set()
    )
    root = obj("ConfigMap", "istio-ca-root-cert", "istio-system", data={"root-cert.pem": "ours"})
    other = hook("istio-validator-bank", "istiod", "bank-mesh", "networking.istio.io")
    service = obj("Service", "istiod", "bank-mesh")
    assert webhook_causes(monkeypatch, root, other, service) == []
    mine = hook("istio-validator", "istiod", "istio-system", "networking.istio.io")
    service = obj("Service", "istiod", "istio-system")
    assert [c for c, *_ in webhook_causes(monkeypatch, root, mine, service)] == ["webhook-ca"]


@pytest.mark.parametrize(
    ("labels", "level"),
    [
        (
            {"job": "envoy-stats", "instance": "10.0.0.1:15020", "namespace": "bank", "pod": "ledger-1"},
            "warning",
        ),
        (
            {"job": "istiod", "instance": "10.0.0.2:15014", "namespace": "istio-system", "pod": "istiod-1"},
            "warning",
        ),
        (
            {
                "job": "g",
                "instance": "10.0.0.3:15020",
                "namespace": "istio-system",
                "pod": "g0",
                "app": "envoy",
            },
            "error",
        ),
        ({"job": "istio-ingressgateway", "instance": "10.0.0.3:15020"}, "error"),
        ({"job": "apisix", "instance": "a:9091", "namespace": "apisix", "pod": "apisix-1"}, "error"),
    ],
)
def test_only_targets_of_the_two_gateways_lack(labels: dict[str, str], level: str) -> None:
    def answer(query: str, at: float) -> object:
        down = query == "up == 0" or query.startswith("max_over_time(up[")
        return [{"metric": labels, "value": [at, "0"]}] if down else []

    found = [str(c.level) for c in ask_metrics(answer) if c.code == "metrics-target-down"]
    assert found == [level]


def test_the_cpu_is_raised_where_it_is_declared() -> None:
    """`kubectl set resources` would restart every gateway pod, and the next install undo it."""
    context = Context(healthy())
    probe = next(p for p in PROBES if p.name == "gateway CPU")

    class Source:
        def instant(self, *_: Any) -> Any:
            one = type("Series", (), {"value": 0.5})
            return type("Answer", (), {"series": [one]})

    context.source = Source()  # type: ignore[assignment]
    from gateshift.diagnose import facts, latency

    seen = facts.Facts(context)
    seen.once("envoy", lambda: type("E", (), {"grown": {}, "seconds": 1.0}))
    (cause,) = latency._cpu(seen)
    assert "istio.gateway.resources" in cause.remedy
    assert "set resources" not in cause.remedy
    assert probe in OFFLINE
