"""Tree 6, our own: traffic share, metrics, the admission webhook, parity, and a migration that stands."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gateshift.cluster.install import answers
from gateshift.cluster.objects import GATEWAY_API, name_of
from gateshift.cluster.operator import istiod_name
from gateshift.diagnose.causes import found
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.model import Cause, Level, Probe
from gateshift.errors import ClusterError, GateshiftError
from gateshift.migration.identity import Process
from gateshift.traffic import probes as functional

__all__ = ["PROBES"]


def _share(facts: Facts) -> Iterator[Cause]:
    weights = facts.context.shifter().read()
    planned = facts.context.state.weight_percent
    begun = facts.context.state.stage_entered is not None or planned > 0
    for host, one in sorted(weights.hosts.items()):
        # Before the first stage simple records are how everybody starts; 50_canary prepares them.
        if one.problem and (begun or one.istio_percent is None):
            yield found(
                "share-records",
                f"{host}: {one.problem}",
                "correct the record named, or run 50_canary again: it prepares the records",
            )
    percents = {h: w.istio_percent for h, w in weights.hosts.items()}
    text = ", ".join(f"{h}: {p if p is None else format(p, 'g')} %" for h, p in sorted(percents.items()))
    back = "gateshift canary puts the stage's weight right; gateshift rollback brings everybody to APISIX"
    if len({p for p in percents.values() if p is not None}) > 1:
        yield found("share-hosts-differ", f"{text}; the journal says {planned} %", back)
    elif weights.istio_percent is not None and weights.istio_percent not in _possible(facts):
        yield found("share-weights", text, back, dns=weights.istio_percent, journal=planned)


def _possible(facts: Facts) -> frozenset[int]:
    state = facts.context.state
    return frozenset(getattr(state, "possible_weights", {state.weight_percent}))


def _observed(facts: Facts) -> Iterator[Cause]:
    """DNS is right and the users are not there: caches, pinned connections."""
    planned = facts.context.state.weight_percent
    now = time.time()
    sample = facts.context.sampler.sample(now - 6 * facts.params.metrics.step, now)
    istio, apisix = sample.canary.requests, sample.baseline.requests
    if istio is None or apisix is None or istio + apisix < 50:
        return
    seen = 100.0 * istio / (istio + apisix)
    if abs(seen - planned) > max(5.0, 0.3 * planned):
        yield found(
            "share-caches",
            f"{istio:.0f} of {istio + apisix:.0f} requests in {6 * facts.params.metrics.step:.0f} s",
            "wait one TTL; then look for clients that never resolve again (long-lived connections, JVM "
            "caches)",
            dns=planned,
            seen=seen,
        )


def _metrics(facts: Facts) -> Iterator[Cause]:
    now = time.time()
    step = facts.params.metrics.step
    source = facts.context.source
    try:
        down = source.instant("up == 0", now).series
        # One scrape that failed is a hint; a target is down when none of the last two or three was answered.
        long = source.instant(f"max_over_time(up[{round(2500 * step)}ms]) == 0", now).series
    except GateshiftError as error:
        yield found(
            "metrics-unreachable", str(error), f"check metrics.url ({facts.params.metrics.url}) and its pods"
        )
        return
    lasting = {(one.labels.get("job"), one.labels.get("instance")) for one in long}
    for series in down:
        job, instance = series.labels.get("job"), series.labels.get("instance")
        target = f"{job or ''} {instance or ''}".strip()
        ours = _is_gateway(facts, series.labels)
        if ours or any(word in target for word in ("istio", "apisix", "envoy", "gateway")):
            grave = ours and (job, instance) in lasting
            yield found(
                "metrics-target-down",
                f'up{{job="{job}",instance="{instance}"}} is 0',
                "look at the target's pod and port: 15020 or 15090 (/stats/prometheus) of the gateway, "
                "9091 of APISIX",
                level=None if grave else Level.WARNING,
                confidence=None if ours else 0.2,
                target=target,
            )
    sample = facts.context.sampler.sample(now - 4 * step, now)
    metrics = facts.params.metrics
    for side, name, metric, selector in (
        (sample.canary, "Istio", "istio_requests_total", metrics.istio_selector),
        (sample.baseline, "APISIX", "apisix_http_status", metrics.apisix_selector),
    ):
        if side.requests is not None:
            continue
        any_series = source.instant(f"count({metric})", now).series
        if (
            any_series
            and selector
            and not source.instant(f"count({metric}{{{selector.strip('{}')}}})", now).series
        ):
            yield found(
                "metrics-selector",
                f"{metric} has {any_series[0].value:.0f} series, none with {selector}",
                f"correct metrics.{name.lower()}_selector in the params file",
                selector=selector,
                side=name,
            )
            continue
        # No request ever counted is how a new gateway starts; it is no lack while DNS sends nobody there.
        # Series that ended are one: the target answers, and what it answers lacks them.
        known = any_series or source.instant(f"count(last_over_time({metric}[15m]))", now).series
        quiet = name == "Istio" and not known and facts.context.state.weight_percent == 0
        if not quiet:
            yield found(
                "metrics-missing",
                f"{side.missing or 'no series'}",
                f"check the scrape target and metrics.{name.lower()}_selector; a gateway reports as "
                'reporter="source"',
                side=name,
            )


def _is_gateway(facts: Facts, labels: Mapping[str, str]) -> bool:
    """Say whether a target is one of the two gateways: by its pod, where it names one, else by its job."""
    istio, apisix = facts.params.istio, facts.params.apisix
    space = labels.get("namespace") or labels.get("kubernetes_namespace")
    pod = labels.get("pod") or labels.get("kubernetes_pod_name") or labels.get("pod_name")
    if space and pod:
        try:
            mine = {name_of(p) for p in facts.workload}
        except GateshiftError:
            mine = set()
        ours = pod in mine or pod.startswith(f"{istio.gateway_service}-")
        return (space == istio.namespace and ours) or (space == apisix.namespace and "apisix" in pod)
    target = f"{labels.get('job', '')} {labels.get('instance', '')}"
    return any(word in target for word in ("gateway", "apisix", "envoy"))


def _webhook(facts: Facts) -> Iterator[Cause]:
    istio = facts.params.istio
    try:
        wrong = answers(facts.cluster, facts.params)
    except ClusterError as error:
        if "no answer" not in str(error):
            raise
        wrong = str(error)  # other reads are answered: it is the webhook that the API server waits for
    if wrong:
        yield found(
            "webhook-silent",
            wrong,
            f"kubectl -n {facts.params.istio.namespace} get pods,endpointslices -l app=istiod; then the "
            "webhook's "
            "clientConfig and caBundle",
        )
    authority = facts.get("ConfigMap", "istio-ca-root-cert", facts.params.istio.namespace) or {}
    trusted = _certificates(str((authority.get("data") or {}).get("root-cert.pem", "")))
    for kind in ("ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"):
        for config in facts.objects(kind):
            for hook in config.get("webhooks") or []:
                client = hook.get("clientConfig") or {}
                service = client.get("service") or {}
                blocks = service and hook.get("failurePolicy", "Fail") == "Fail"
                if blocks and facts.get("Service", service["name"], service["namespace"]) is None:
                    meets = _meets_us(hook)
                    yield found(
                        "webhook-service",
                        f"{name_of(config)}: {service['namespace']}/{service['name']}",
                        f"restore the Service; if what it belongs to is gone for good: kubectl delete "
                        f"{kind.lower()} {name_of(config)} (its checks are then off)",
                        level=None if meets else Level.WARNING,
                        confidence=None if meets else 0.3,
                        name=hook["name"],
                    )
                own = service.get("namespace") == istio.namespace and "istiod" in service.get("name", "")
                if own and trusted and not trusted & _bundle(client.get("caBundle")):
                    yield found(
                        "webhook-ca",
                        f"{name_of(config)}: the bundle does not hold the CA of ConfigMap istio-ca-root-cert",
                        f"kubectl -n {istio.namespace} rollout restart deployment {istiod_name(istio)} "
                        "(istiod writes its CA again)",
                        name=hook["name"],
                    )


_WRITTEN = {"", "*", "apps", "autoscaling", "policy", "networking.istio.io", "security.istio.io", GATEWAY_API}
"""API groups that a migration writes to."""


def _meets_us(hook: Mapping[str, Any]) -> bool:
    """Say whether a webhook is called for anything that this migration writes."""
    rules = hook.get("rules") or []
    return not rules or any(_WRITTEN & set(rule.get("apiGroups") or [""]) for rule in rules)


def _bundle(value: object) -> set[bytes]:
    try:
        return _certificates(base64.b64decode(str(value or "")).decode("ascii", "replace"))
    except ValueError:
        return set()


def _certificates(text: str) -> set[bytes]:
    try:
        return {c.public_bytes(Encoding.DER) for c in x509.load_pem_x509_certificates(text.encode())}
    except ValueError:
        return set()


def _parity(facts: Facts) -> Iterator[Cause]:
    """The functional checks at both gateways, then one plain GET of the request asked about."""
    istio = facts.address
    apisix = facts.context.apisix_target
    verify = facts.params.verify

    def at(name: str) -> functional.Address:
        return functional.Address(host=name, connect_to=verify.connect_to, ca_file=verify.ca_file)

    for one in functional.parity(verify.probes, at(apisix), at(istio), timeout=5.0):
        if not one.agrees and not one.skipped:
            yield found(
                "parity",
                one.why,
                "compare the rule with the ledger of 20_translate",
                name=f"probe {one.name}",
            )
    if not facts.host:
        return
    path = facts.path or "/"
    old, new = (_get(at(name), facts.host, path) for name in (apisix, istio))
    if old[0] == new[0]:
        return
    request = f"{facts.host}{path}"
    # The text of a refusal tells who refused; that of an answer is the application's own business.
    said = f" ({new[1][:80]})" if not new[0] or new[0] >= 400 else ""
    evidence = f"APISIX answers {old[0]}, Istio {new[0]}{said}"
    if new[0] == 403 and "RBAC" in new[1]:
        policies = [
            f"{p['metadata']['namespace']}/{name_of(p)}"
            for p in facts.objects("AuthorizationPolicy", facts.params.istio.namespace)
        ]
        yield found(
            "parity-rbac",
            f"{evidence}; policies there: {', '.join(policies) or 'none'}",
            "one ALLOW policy denies all it does not name; find the policy in the details: "
            "kubectl -n <ns> logs deploy/<service> | grep rbac_access_denied".replace(
                "<ns>", facts.params.istio.namespace
            ).replace("<service>", facts.params.istio.gateway_service),
            request=request,
        )
    elif new[0] == 401 and ("Jwt" in new[1] or "jwt" in new[1]):
        yield found(
            "parity-jwt",
            evidence,
            "a RequestAuthentication judges every token of the gateway: scope it with fromHeaders, or its "
            "own gateway",
            request=request,
        )
    else:
        yield found("parity", evidence, "see symptom 404 or 503 for this host and path", name=request)


def _get(address: functional.Address, host: str, path: str) -> tuple[int, str]:
    name, port = address.endpoint(tls=False)
    try:
        answer = httpx.get(
            f"http://{name}:{port}{path}", headers={"Host": host}, timeout=5.0, trust_env=False
        )
    except httpx.HTTPError as error:
        return 0, type(error).__name__
    return answer.status_code, answer.text[:200]


def _stuck(facts: Facts) -> Iterator[Cause]:
    state = facts.context.state
    if state.rolling_back:
        yield found(
            "migration-rollback",
            f"since {state.rollback_since}: {state.rollback_reason}; weights "
            + ("are back" if state.rollback_shifted else "not confirmed"),
            "gateshift rollback --act finishes it; nothing else may go on before",
        )
    if state.pending:
        yield found(
            "migration-intent",
            f"{state.pending}.intent is the last word about it in the journal",
            f"gateshift {state.pending} --act looks at reality and goes on from there",
            what=state.pending,
        )
    if state.shifting_to is not None and not state.rolling_back:
        yield found(
            "migration-shift",
            f"DNS is at {state.weight_percent} % or {state.shifting_to} %",
            "gateshift canary --act reads the records and goes on; gateshift rollback --act goes back",
            to=state.shifting_to,
        )
    lease = facts.get("Lease", "gateshift", "kube-system")
    spec = (lease or {}).get("spec") or {}
    holder = str(spec.get("holderIdentity") or "")
    if holder and Process.current().text() not in holder:
        age = time.time() - _unix(str(spec.get("renewTime") or ""))
        life = float(spec.get("leaseDurationSeconds") or 0)
        yield found(
            "migration-lease",
            f"{holder}, renewed {age:.0f} s ago, valid {life:.0f} s",
            "wait for it to end"
            if age <= life
            else "it has expired and is taken over by the next run; nothing to do",
            confidence=0.93 if age <= life else 0.4,
        )
    here = getattr(facts.context, "run", "")
    for mark in state.open_runs:
        if mark.run != here:
            yield found(
                "migration-run-died",
                f"started {mark.started}",
                "if it is not running any more, run the same notebook again: it resumes from the journal",
                run=mark.run,
                notebook=mark.notebook,
            )


def _unix(text: str) -> float:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0


PROBES = (
    Probe(
        "DNS weights",
        frozenset({"share", "gateway"}),
        "aws route53 list-resource-record-sets --hosted-zone-id <id>",
        _share,
    ),
    Probe("observed share", frozenset({"share"}), "curl $PROMETHEUS/api/v1/query", _observed),
    Probe("metrics", frozenset({"no-metrics", "share"}), "curl $PROMETHEUS/api/v1/targets", _metrics),
    Probe("webhook", frozenset({"webhook"}), "kubectl get validatingwebhookconfigurations -o yaml", _webhook),
    Probe("parity", frozenset({"parity"}), "curl --connect-to to both load balancers", _parity),
    Probe(
        "migration",
        frozenset({"stuck"}),
        "gateshift status; kubectl -n kube-system get lease gateshift -o yaml",
        _stuck,
    ),
)
