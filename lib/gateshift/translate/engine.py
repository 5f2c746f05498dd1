"""The translation from end to end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gateshift.apisix.model import Configuration, Kind, Severity
from gateshift.apisix.routing import default_router
from gateshift.istio.fields import check_fields
from gateshift.istio.versions import parse_version
from gateshift.params.model import TranslateParams
from gateshift.translate.certificates import tls_names
from gateshift.translate.drafts import draft_routes
from gateshift.translate.emit import Emission, hold_back_unemittable, virtual_services
from gateshift.translate.envoy_filters import envoy_filters
from gateshift.translate.gateway import api_gateway, check_scopes, gateways, security
from gateshift.translate.job import Draft, Job
from gateshift.translate.leftovers import account_leftovers
from gateshift.translate.model import ROUTES_FILE, LedgerEntry, Target, Translation
from gateshift.translate.streams import draft_streams, stream_objects, stream_ports
from gateshift.translate.tables import ANY_HOST, host_lists
from gateshift.translate.targets import in_their_forms
from gateshift.translate.upstreams import Backend, UpstreamBook
from gateshift.translate.vhosts import host_filter

__all__ = ["translate"]

MANY_COPIES = 50
"""Hostless routes are copied into every host; beyond this many copies an operator should know."""


def translate(configuration: Configuration, params: TranslateParams, target: Target) -> Translation:
    """Translate *configuration* for *target*.

    Routes that a blocker holds back are not emitted; in the tables where another route would otherwise
    take over their requests, a refusal (503) stands in their place. Raises GateshiftError when a source
    leaf is unaccounted for or a field would be emitted that the version lacks, InputError for an Istio
    version outside the table.
    """
    version = parse_version(target.version)
    router = target.router or default_router(configuration)
    job = Job(configuration, params, target, version, router)
    if target.router is None and configuration.router is None:
        job.warn(f"the configuration does not name its router: {router} is assumed (the default since 3.3)")
    book = UpstreamBook(job)
    drafts = [draft for draft in draft_routes(job, book) if draft.patterns]
    hold_back_unemittable(job, drafts)
    tls = tls_names(job)
    lists = host_lists(drafts, router, [name for names in tls.values() for name in names])
    check_scopes(job, lists)
    _warn_copies(job, drafts, len(lists))
    streams = draft_streams(job, book)
    job.tcp_ports = stream_ports(streams)
    book.keep([*_used(drafts), *_used(streams)])
    wanted = {host for one in drafts if not one.blocked for host in one.effective.hosts or (ANY_HOST,)}
    emission = virtual_services(job, book, lists, tls, wanted)
    files: dict[str, tuple[dict[str, Any], ...]] = {
        "gateway.yaml": tuple(gateways(job, emission, tls)),
        "virtual-service.yaml": tuple(emission.objects),
        "destination-rule.yaml": tuple(book.objects()),
        "security.yaml": tuple(security(job, emission.lists)),
        "telemetry.yaml": (),
        "envoy-filter.yaml": (
            *host_filter(job, emission.lists),
            *envoy_filters(job, drafts, emission),
            *book.health_checks(),
        ),
        ROUTES_FILE: (*api_gateway(job, emission, tls), *emission.routes),
    }
    for name, made in stream_objects(job, book, streams).items():
        files[name] = (*files[name], *made)
    for name, extra in job.extra.items():
        unique = {str(one): one for one in extra}
        files[name] = (*files[name], *unique.values())
    for field in check_fields(version, (one for made in files.values() for one in made)):
        job.warn(f"{field} is in no table of fields by version: see that Istio {version} takes it")
    account_leftovers(job, drafts, streams)
    _account_input(job, serving=bool(streams) or any(draft.conditions for draft in drafts))
    for finding in configuration.findings:
        if finding.severity is not Severity.INFO:
            job.warn(f"{finding.origin}: {finding.message}")
    standing, signed = job.blockers()
    return Translation(
        files=files,
        ledger=_ledger(job, emission),
        blockers=standing,
        warnings=tuple(job.warnings),
        accepted=signed,
        entries=dict(sorted(emission.entries.items())),
        refused=frozenset(draft.id for draft in drafts if draft.blocked),
        router=str(router),
        forms=tuple(emission.forms),
    )


def _ledger(job: Job, emission: Emission) -> tuple[LedgerEntry, ...]:
    """Close the ledger; raises GateshiftError when a source leaf is unaccounted for."""
    entries = job.ledger.close()
    if not emission.routes:
        return entries
    forms: dict[str, set[str]] = {}
    for one in emission.forms:
        for draft, _ in emission.lists[one.host]:
            forms.setdefault(draft.resource, set()).add(one.form)
    return in_their_forms(entries, forms, {one.form for one in emission.forms})


def _account_input(job: Job, *, serving: bool) -> None:
    """Block on what APISIX acts on and no reader could take, and on an input that serves nothing at all."""
    for finding in job.configuration.findings:
        if finding.unread:
            job.lost(finding.unread, finding.message, finding.remedy, str(finding.origin))
    if not serving:
        origin = next((str(one.origin) for one in job.configuration), "")
        remedy = "name the files that hold the routes as well, or sign that nothing is to be served"
        written = job.configuration.of(Kind.ROUTE) or job.configuration.of(Kind.STREAM_ROUTE)
        reason = "no route of it takes a request" if written else "there is no route"
        job.lost("configuration", f"{reason}: nothing would be served", remedy, origin)


def _used(drafts: Sequence[Draft]) -> Iterator[Backend]:
    """Yield the destinations that an emitted route still uses."""
    for draft in drafts:
        if not draft.blocked:
            yield from draft.backends
            yield from draft.mirrors
            for split in draft.splits:
                yield from split.route


def _warn_copies(job: Job, drafts: Sequence[Draft], hosts: int) -> None:
    shared = [draft for draft in drafts if not draft.effective.hosts]
    copies = len(shared) * max(0, hosts - 1)
    if copies > MANY_COPIES:
        job.warn(
            f"{len(shared)} routes without host are copied into {hosts} VirtualServices ({copies} copies): "
            "give them hosts to keep the tables short"
        )
