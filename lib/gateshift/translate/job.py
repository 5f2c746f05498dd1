"""The state of one translation: what the rules of every plugin may read and what they may write."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateshift.apisix.model import Configuration, Resource, Router
from gateshift.istio.builders import build, dns_label, spread
from gateshift.istio.versions import Feature, IstioVersion
from gateshift.params.model import Accept, TranslateParams
from gateshift.translate.conditions import Condition
from gateshift.translate.ledger import Ledger, Path
from gateshift.translate.model import Blocker, Fidelity, Target
from gateshift.translate.paths import Pattern
from gateshift.translate.sources import Inherited

__all__ = ["Draft", "Guard", "HttpFilter", "Job", "Policy", "Split", "Variants"]


@dataclass(frozen=True, slots=True)
class Guard:
    """A rule directly above a route's own: the route's match AND *conditions* gives *http*.

    Guards stand in the order in which APISIX runs them: first those of the rewrite phase, then (*late*)
    those of the access phase, in each the highest plugin *priority* first. A guard whose ``http`` neither
    answers nor redirects still forwards: it is then laid over the route's own action. *patch* is what an
    EnvoyFilter merges into it where a VirtualService has no field.
    """

    name: str
    priority: int
    conditions: Sequence[Condition]
    http: Mapping[str, Any]
    late: bool = False
    patch: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Split:
    """Destinations that replace the route's own when *conditions* hold."""

    conditions: Sequence[Condition]
    route: Sequence[Any]


Variants = Sequence[tuple[Sequence[Condition], Mapping[str, Any]]]
"""One plugin's alternatives, tried in order: conditions, and what is laid over the route's action when
they hold. When none holds the action stays as it is."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy that must hold on the routes that carry it: equal *key* means the same policy.

    It denies; with a *provider* of MeshConfig's ``extensionProviders`` it asks that instead (CUSTOM). An
    ALLOW policy does not exist here: one on a shared gateway closes every route without it.
    """

    key: str
    name: str
    source: Mapping[str, Any] = field(default_factory=dict)
    when: Sequence[Sequence[Mapping[str, Any]]] = ((),)
    """Alternatives: the policy acts where every condition of one of them holds."""
    exempt_methods: tuple[str, ...] = ()
    provider: str = ""
    checks_tokens: bool = False


@dataclass(frozen=True, slots=True)
class HttpFilter:
    """An HTTP filter of the gateway that does nothing unless a route switches it on.

    Filters are inserted before the router, highest *priority* first, as APISIX runs. *disabled* is for
    filters that cannot do nothing by themselves: a route that configures one switches it on.
    """

    name: str
    concern: str
    priority: int
    config: Mapping[str, Any]
    disabled: bool = False


@dataclass(slots=True)
class Draft:
    """One route on its way: plugins fill in the action, guards, filters and policies.

    ``filters`` maps a filter of the gateway to its settings on this route; ``patches`` maps a concern to
    what an EnvoyFilter merges into the route where a VirtualService has no field for it.
    """

    route: Resource
    label: str
    effective: Inherited
    patterns: tuple[Pattern, ...]
    conditions: list[Condition]
    http: dict[str, Any] = field(default_factory=dict)
    backends: list[Any] = field(default_factory=list)
    default_backends: list[Any] = field(default_factory=list)
    mirrors: list[Any] = field(default_factory=list)
    terminal: dict[str, Any] | None = None
    guards: list[Guard] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    variants: list[Variants] = field(default_factory=list)
    filters: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    patches: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    policies: list[Policy] = field(default_factory=list)
    blocked: bool = False

    @property
    def id(self) -> str:
        """The APISIX route's id."""
        return self.route.id

    @property
    def resource(self) -> str:
        """The route as blockers and annotations name it."""
        return f"{self.route.kind}/{self.route.id}"

    def headers(self, side: str, operation: str) -> dict[str, str]:
        """Return the mutable header table, for example ``("request", "set")``."""
        table: dict[str, str] = (
            self.http.setdefault("headers", {}).setdefault(side, {}).setdefault(operation, {})
        )
        return table

    def remove_header(self, side: str, name: str) -> None:
        """Remove a header of the request or the response."""
        names = self.http.setdefault("headers", {}).setdefault(side, {}).setdefault("remove", [])
        if name not in names:
            names.append(name)


@dataclass(slots=True)
class _Pending:
    """Why routes are held back; *difference* when they are translated, only not exactly."""

    remedy: str
    origin: str
    difference: bool
    reasons: dict[str, None] = field(default_factory=dict)
    routes: dict[str, set[str]] = field(default_factory=dict)
    """The reasons that hold each route back."""


def fingerprint(reason: str) -> str:
    """Return what a signature names a reason by: it changes with every word of it."""
    return hashlib.sha256(reason.encode()).hexdigest()[:12]


class Job:
    """One translation in the making."""

    def __init__(
        self,
        configuration: Configuration,
        params: TranslateParams,
        target: Target,
        version: IstioVersion,
        router: Router,
    ) -> None:
        self.configuration = configuration
        self.params = params
        self.target = target
        self.version = version
        self.router = router
        self.ledger = Ledger(configuration)
        self.warnings: dict[str, None] = {}
        self.filters: dict[str, HttpFilter] = {}
        self.extra: dict[str, list[dict[str, Any]]] = {}
        self.tcp_ports: list[int] = []
        self.rate_limits: dict[str, dict[str, Any]] = {}
        self.jwt_rules: dict[str, dict[str, Any]] = {}
        self.sources: dict[str, set[str]] = {}
        self.unrendered: dict[tuple[str, str], list[tuple[Path, str]]] | None = None
        self._pending: dict[tuple[str, str, bool], _Pending] = {}

    def has(self, feature: Feature) -> bool:
        """Tell whether the target version knows *feature*."""
        return self.version.has(feature)

    def envoy_filters(
        self,
        label: Sequence[str],
        patches: Sequence[dict[str, Any]],
        sources: Iterable[str],
        *,
        priority: int | None = None,
    ) -> list[dict[str, Any]]:
        """Return *patches* for the gateway as EnvoyFilters of this name, numbered from the second one on."""
        first = {} if priority is None else {"priority": priority}
        selector = {"labels": dict(self.target.gateway_selector)}
        sources = tuple(sources)
        return [
            build(
                self.version,
                "EnvoyFilter",
                dns_label(*label, *((str(number),) if number > 1 else ())),
                self.target.gateway_namespace,
                {**first, "workloadSelector": selector, "configPatches": part},
                sources,
            )
            for number, part in enumerate(spread(patches), start=1)
        ]

    def warn(self, text: str) -> None:
        """Note something that an operator should read once."""
        self.warnings[text] = None

    def mark(
        self, resource: Resource, path: Path, fidelity: Fidelity, target: str = "", note: str = ""
    ) -> None:
        """Shorthand for the ledger's mark."""
        self.ledger.mark(resource, path, fidelity, target=target, note=note)

    def use_filter(self, one: HttpFilter) -> None:
        """Insert an HTTP filter into the gateway once."""
        self.filters.setdefault(one.name, one)

    def emit(self, file: str, one: dict[str, Any]) -> None:
        """Add an object beside those that routes make."""
        self.extra.setdefault(file, []).append(one)

    def source(self, key: str, *resources: str) -> None:
        """Remember which resources an object comes from."""
        self.sources.setdefault(key, set()).update(resources)

    def signature(
        self, resource: str, plugin: str, route: str, reasons: Iterable[str], *, difference: bool = False
    ) -> Accept | None:
        """Return who accepted the loss of *plugin* on *resource* or *route*, and why; None when nobody.

        ``*`` as resource signs one plugin's *difference* everywhere, and only the reasons that it covers:
        it would stand under what nobody has read yet otherwise. The loss of a plugin is signed for each
        resource by its name. A signature that says which reasons it covers is void for others.
        """
        prints = {fingerprint(one) for one in reasons}
        for one in self.params.accept:
            named = one.resource in (resource, route) or (difference and one.resource == "*")
            if one.plugin != plugin or not named:
                continue
            if prints <= set(one.covers) or (not one.covers and one.resource != "*"):
                return one
            if not one.covers:
                self.warn(
                    f"the signature of {one.who} under {plugin} of * signs nothing, for it names no reasons "
                    "(covers); the blockers list them"
                )
                continue
            self.warn(
                f"the signature of {one.who} under {plugin} of {one.resource} does not cover "
                f"{resource}: its reasons are now {', '.join(sorted(prints))}"
            )
        return None

    def block(
        self,
        owner: Resource,
        plugin: str,
        route: str,
        reason: str,
        remedy: str,
        *,
        difference: bool = False,
    ) -> bool:
        """Hold *route* back because of *plugin*; returns False when a person has signed for it.

        *difference* says that the plugin is converted with a behaviour that differs; without it the plugin
        would be lost.
        """
        resource = f"{owner.kind}/{owner.id}"
        pending = self._pending.setdefault(
            (resource, plugin, difference), _Pending(remedy, str(owner.origin), difference)
        )
        pending.reasons[reason] = None
        held = pending.routes.setdefault(route, set())
        held.add(reason)
        return self.signature(resource, plugin, route, held, difference=difference) is None

    def lost(self, what: str, reason: str, remedy: str, origin: str) -> None:
        """Block because *what* (``GRPCRoute/shop``) never became part of the configuration."""
        pending = self._pending.setdefault((what, "input", False), _Pending(remedy, origin, False))
        pending.reasons[reason] = None

    def held(self, owner: Resource, plugin: str, route: str) -> bool:
        """Tell whether *route* already waits for (or has) a signature because *plugin* would be lost."""
        pending = self._pending.get((f"{owner.kind}/{owner.id}", plugin, False))
        return pending is not None and route in pending.routes

    def _everywhere(self, plugin: str) -> str:
        """Return what a signature of *plugin* under ``*`` has to cover, ready to paste, if there is one."""
        signers = [one.who for one in self.params.accept if (one.resource, one.plugin) == ("*", plugin)]
        if not signers:
            return ""
        alike = [p for (_, name, difference), p in self._pending.items() if name == plugin and difference]
        prints = sorted({fingerprint(reason) for pending in alike for reason in pending.reasons})
        listed = ", ".join(f'"{one}"' for one in prints)
        return f"; read the reasons, then sign under * with covers: [{listed}] ({signers[0]})"

    def blockers(self) -> tuple[tuple[Blocker, ...], tuple[Blocker, ...]]:
        """Return (what still blocks, what a person has accepted)."""
        standing: list[Blocker] = []
        signed: list[Blocker] = []
        for (resource, plugin, difference), one in sorted(self._pending.items()):
            groups: dict[Accept | None, list[str]] = {}
            for route in one.routes or ("",):
                reasons = one.routes.get(route, one.reasons)
                signature = self.signature(resource, plugin, route, reasons, difference=difference)
                groups.setdefault(signature, []).append(route)
            for signature, routes in sorted(groups.items(), key=lambda pair: sorted(pair[1])):
                remedy = one.remedy
                if difference and signature is None:
                    remedy += self._everywhere(plugin)
                blocker = Blocker(
                    resource,
                    plugin,
                    "; ".join(one.reasons),
                    remedy,
                    tuple(sorted(filter(None, routes))),
                    one.origin,
                    "" if signature is None else f"{signature.who}: {signature.why}",
                    tuple(fingerprint(reason) for reason in one.reasons),
                    pinned=signature is not None and bool(signature.covers),
                )
                (standing if signature is None else signed).append(blocker)
        for blocker in signed:
            if not blocker.pinned:
                self.warn(f"{blocker.resource} {blocker.plugin}: {blocker.held_by}")
        return tuple(standing), tuple(signed)
