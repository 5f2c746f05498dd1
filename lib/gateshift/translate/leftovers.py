"""Accounts for what no route led to: unused services, consumers, metadata, stream routes, secrets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateshift.apisix.model import Kind, Resource
from gateshift.translate.job import Draft, Job
from gateshift.translate.model import Fidelity
from gateshift.translate.plugins.registry import facts

__all__ = ["account_leftovers"]

_DOCUMENTATION = ("id", "name", "username", "desc", "description", "labels", "create_time", "update_time")
_AUTH_NOTE = "the credential stays where it is; no emitted object holds it"


def _documentation(job: Job, one: Resource) -> None:
    for key in _DOCUMENTATION:
        if key in one.spec:
            job.mark(one, (key,), Fidelity.IGNORED_DEFAULT, "", "documentation only")


def _rest(job: Job, one: Resource, fidelity: Fidelity, note: str) -> None:
    for leaf in job.ledger.open_leaves(one):
        job.mark(one, leaf, fidelity, "", note)


def _service(job: Job, one: Resource, used: bool) -> None:
    for key in ("hosts", "enable_websocket"):
        if key in one.spec and used:
            note = "used by the routes that have none of their own"
            job.mark(one, (key,), Fidelity.EXACT, "VirtualService hosts" if key == "hosts" else "", note)
    for key in ("upstream_id",):
        if key in one.spec and used:
            job.mark(one, (key,), Fidelity.EXACT, "", "followed")
    for key in ("script",):
        if key in one.spec:
            job.mark(one, (key,), Fidelity.MANUAL, "", "a Lua script has no equivalent")
    for key in ("plugins", "upstream"):
        if isinstance(one.spec.get(key), Mapping):
            note = "every route has its own" if used else "no enabled route uses this service"
            for leaf in job.ledger.open_leaves(one, (key,)):
                job.mark(one, leaf, Fidelity.IGNORED_DEFAULT, "", note)
    fidelity = Fidelity.MANUAL if used else Fidelity.IGNORED_DEFAULT
    _rest(job, one, fidelity, "unknown field" if used else "no enabled route uses this service")


def _consumer(job: Job, one: Resource) -> None:
    plugins = one.spec.get("plugins")
    for name in plugins if isinstance(plugins, Mapping) else ():
        fact = facts().get(name)
        auth = fact is not None and fact.category == "auth"
        note = _AUTH_NOTE if auth else f"{name} of one consumer has no equivalent"
        for leaf in job.ledger.open_leaves(one, ("plugins", name)):
            job.mark(one, leaf, Fidelity.MANUAL, "", note)
    job.mark(one, ("group_id",), Fidelity.NONE, "", "Istio has no consumer groups")
    _rest(job, one, Fidelity.MANUAL, "consumers do not exist in Istio")


def _metadata(job: Job, one: Resource) -> None:
    fact = facts().get(one.id)
    if fact is not None and fact.category in ("logging", "billing", "tracing", "metrics"):
        note = "set the mesh's access log format or provider (meshConfig) to the same fields"
        _rest(job, one, Fidelity.MANUAL, note)
    else:
        _rest(job, one, Fidelity.MANUAL, "gateway-wide settings of the plugin: check them by hand")


def account_leftovers(  # noqa: PLR0912 - one branch a kind
    job: Job,
    drafts: Sequence[Draft],
    streams: Sequence[Draft] = (),
) -> None:
    """Account for every resource that is not a route, and for what routes did not reach."""
    services = {d.effective.service.id for d in (*drafts, *streams) if d.effective.service}
    configs = {d.effective.plugin_config.id for d in drafts if d.effective.plugin_config}
    routes = {d.id for d in drafts}
    for one in job.configuration:
        if one.kind is Kind.ROUTE and one.id in routes:
            for key in ("plugins", "upstream"):
                if key in one.spec:
                    for leaf in job.ledger.open_leaves(one, (key,)):
                        job.mark(one, leaf, Fidelity.IGNORED_DEFAULT, "", "nothing of it is in force")
            continue
        if one.kind is Kind.ROUTE:
            _rest(job, one, Fidelity.MANUAL, "APISIX drops this route: it has no usable uri")
            continue
        _documentation(job, one)
        if one.kind is Kind.SERVICE:
            _service(job, one, one.id in services)
        elif one.kind is Kind.UPSTREAM:
            _rest(job, one, Fidelity.IGNORED_DEFAULT, "no enabled route uses this upstream")
        elif one.kind is Kind.PLUGIN_CONFIG:
            used = one.id in configs
            note = "every route has its own" if used else "no enabled route uses this plugin_config"
            _rest(job, one, Fidelity.IGNORED_DEFAULT, note)
        elif one.kind is Kind.GLOBAL_RULE:
            _rest(job, one, Fidelity.IGNORED_DEFAULT, "there is no route that it could apply to")
        elif one.kind in (Kind.CONSUMER, Kind.CONSUMER_GROUP, Kind.CREDENTIAL):
            _consumer(job, one)
        elif one.kind is Kind.STREAM_ROUTE:
            _rest(job, one, Fidelity.MANUAL, "not converted: see its blocker, or check what was meant")
        elif one.kind is Kind.PLUGIN_METADATA:
            _metadata(job, one)
        elif one.kind is Kind.PROTO:
            _rest(job, one, Fidelity.IGNORED_DEFAULT, "no enabled route transcodes with this proto")
        elif one.kind is Kind.SECRET:
            _rest(job, one, Fidelity.MANUAL, "fill Kubernetes Secrets from the same store (External Secrets)")
        else:
            _rest(job, one, Fidelity.EXACT, "followed")
