"""Trees 5 and 6: rate limits, the traffic share, metrics, and the admission webhook."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from gateshift.cluster.install import answers
from gateshift.cluster.objects import name_of, title_of
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.model import Cause, Level, Probe

__all__ = ["PROBES"]

_LIMIT_FILTERS = ("local_ratelimit", "filters.http.ratelimit")


def _rate_filters(facts: Facts) -> Iterator[Cause]:
    limiting = [
        f for f in facts.objects("EnvoyFilter") if any(n in json.dumps(f["spec"]) for n in _LIMIT_FILTERS)
    ]
    if not limiting:
        yield Cause(
            # Without a complaint about limits their absence is nothing wrong.
            Level.ERROR if facts.symptom == "rate-limit" else Level.INFO,
            "no EnvoyFilter with a rate limit exists",
            f"{len(facts.objects('EnvoyFilter'))} EnvoyFilters, none about rate limits",
            "run 30_apply; see the ledger of 20_translate for limit-req and limit-count",
            confidence=0.9,
            reference="guide: tree 5",
        )
        return
    home = facts.params.istio.namespace
    labels = [p["metadata"].get("labels") or {} for p in facts.pods]
    for found in limiting:
        spec, space = found["spec"], found["metadata"]["namespace"]
        chosen = (spec.get("workloadSelector") or {}).get("labels") or {}
        if space != home:
            yield Cause(
                Level.ERROR,
                f"{title_of(found)} is not in the gateway's namespace",
                f"it selects workloads of {space} only",
                f"move it to {home}",
                confidence=0.93,
                reference="istio-traps.md 51",
            )
        elif chosen and labels and not any(chosen.items() <= have.items() for have in labels):
            yield Cause(
                Level.ERROR,
                f"{title_of(found)} selects no gateway pod",
                f"selector {chosen}",
                "set workloadSelector to the gateway pods' labels",
                confidence=0.93,
                reference="istio-traps.md 51",
            )
        for patch in spec.get("configPatches") or []:
            context = (patch.get("match") or {}).get("context", "ANY")
            if context not in {"GATEWAY", "ANY"}:
                yield Cause(
                    Level.ERROR,
                    f"{title_of(found)} patches {context}, not GATEWAY",
                    f"applyTo {patch.get('applyTo')}",
                    "set context: GATEWAY",
                    confidence=0.92,
                    reference="istio-traps.md 51",
                )
            yield from _percentages(title_of(found), patch.get("patch") or {})


def _percentages(title: str, patch: object) -> Iterator[Cause]:
    text = json.dumps(patch)
    if "token_bucket" not in text:
        return
    for field in ("filter_enabled", "filter_enforced"):
        if field not in text:
            yield Cause(
                Level.ERROR,
                f"{title} has a bucket, but no {field}",
                f"{field} defaults to 0 %: nothing is ever limited",
                f"set {field} to 100 %",
                confidence=0.9,
                reference="istio-traps.md 54",
            )


def _rate_in_envoy(facts: Facts) -> Iterator[Cause]:
    wanted = any(
        any(n in json.dumps(f["spec"]) for n in _LIMIT_FILTERS) for f in facts.objects("EnvoyFilter")
    )
    if wanted and "local_ratelimit" not in json.dumps(facts.envoy("listeners")) + json.dumps(
        facts.envoy("routes")
    ):
        yield Cause(
            Level.ERROR,
            "the rate limit filter is not in the gateway's Envoy",
            "EnvoyFilter exists, listener and routes do not have local_ratelimit",
            "check context, listener match and proxy-status of the gateway",
            confidence=0.8,
            reference="istio-traps.md 52",
        )


def _share(facts: Facts) -> Iterator[Cause]:
    weights = facts.context.shifter().read()
    for problem in weights.problems:
        yield Cause(
            Level.ERROR,
            "the DNS records are not as the migration needs them",
            problem,
            "correct the record named, or run 50_canary again: it prepares the records",
            confidence=0.9,
            reference="guide: step 5",
        )
    planned = facts.context.state.weight_percent
    if weights.istio_percent is not None and weights.istio_percent != planned:
        yield Cause(
            Level.ERROR,
            f"DNS says {weights.istio_percent} %, the journal says {planned} %",
            ", ".join(f"{h}: {w.istio_percent}" for h, w in weights.hosts.items()),
            "somebody changed the records: `gateshift shift` or `gateshift rollback` puts them right",
            confidence=0.92,
            reference="guide: step 5",
        )


def _metrics(facts: Facts) -> Iterator[Cause]:
    now = time.time()
    step = facts.params.metrics.step
    sample = facts.context.sampler.sample(now - 4 * step, now)
    for side, name in ((sample.canary, "Istio"), (sample.baseline, "APISIX")):
        if side.requests is None:
            yield Cause(
                Level.ERROR,
                f"the metrics of {name} are missing",
                str(side.missing or "no series"),
                f"check the scrape target and metrics.{name.lower()}_selector; a gateway reports as "
                'reporter="source"',
                confidence=0.9,
                reference="istio-traps.md 57",
            )


def _webhook(facts: Facts) -> Iterator[Cause]:
    wrong = answers(facts.cluster, facts.params)
    if wrong:
        yield Cause(
            Level.ERROR,
            "istiod's admission webhook does not judge configuration",
            wrong,
            "check istiod, its Service and the webhook's caBundle",
            confidence=0.9,
            reference="istio-traps.md 66",
        )
    for kind in ("ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"):
        for config in facts.objects(kind):
            for hook in config.get("webhooks") or []:
                service = hook.get("clientConfig", {}).get("service")
                if not service or hook.get("failurePolicy", "Fail") != "Fail":
                    continue
                if facts.get("Service", service["name"], service["namespace"]) is None:
                    yield Cause(
                        Level.ERROR,
                        f"webhook {hook['name']} refuses everything: its Service is gone",
                        f"{name_of(config)}: {service['namespace']}/{service['name']}",
                        f"kubectl delete {kind.lower()} {name_of(config)}",
                        confidence=0.93,
                        reference="istio-traps.md 66",
                    )


_RATE = frozenset({"rate-limit"})
PROBES = (
    Probe("rate limit objects", _RATE, "kubectl get envoyfilters -A -o yaml", _rate_filters),
    Probe(
        "rate limit in Envoy", _RATE, "istioctl proxy-config listeners <gateway pod> -o json", _rate_in_envoy
    ),
    Probe("DNS weights", frozenset({"share"}), "aws route53 list-resource-record-sets", _share),
    Probe("metrics", frozenset({"no-metrics", "share"}), "curl $PROMETHEUS/api/v1/targets", _metrics),
    Probe("webhook", frozenset({"webhook"}), "kubectl get validatingwebhookconfigurations -o yaml", _webhook),
)
