"""The registry of plugin rules and the view that a rule gets of its plugin."""

from __future__ import annotations

import csv
import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from gateshift.apisix.model import Resource
from gateshift.translate.conditions import Condition, Inexpressible, combine_all, from_vars
from gateshift.translate.job import Draft, Guard, Job, Variants
from gateshift.translate.ledger import Path, format_path
from gateshift.translate.model import Fidelity
from gateshift.translate.upstreams import UpstreamBook

__all__ = ["Fact", "Use", "apply_plugin", "facts", "handled", "handles", "hold_unless_exact"]


@dataclass(frozen=True, slots=True)
class Fact:
    """What is known of one APISIX plugin: how well it maps, and what dropping it would cost."""

    name: str
    priority: int
    phases: frozenset[str]
    category: str
    fidelity: str
    risk: str

    @property
    def guards_access_or_money(self) -> bool:
        """True when a silent loss would open a door or lose billing events."""
        return self.risk == "security" or self.category in ("security", "auth", "billing")


@cache
def facts() -> Mapping[str, Fact]:
    """Return the facts of APISIX 3.18's 126 plugins by name, from the package's table."""
    text = (files("gateshift.translate") / "facts.tsv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t")
    return {
        row["name"]: Fact(
            row["name"],
            int(row["priority"]),
            frozenset(row["phases"].split("+")),
            row["category"],
            row["fidelity"],
            row["risk"],
        )
        for row in rows
    }


@dataclass(frozen=True, slots=True)
class Use:
    """One plugin in force on one route. A rule reads ``config`` and accounts for each of its keys."""

    job: Job
    book: UpstreamBook
    draft: Draft
    name: str
    config: Mapping[str, Any]
    owner: Resource
    is_global: bool = False
    under: Path = ()
    """Where in the plugin ``config`` stands, for a plugin inside another (workflow)."""
    written: str = ""
    """The plugin's name in its owner, where *name* is another (a stream route's ``ip-restriction``)."""

    @property
    def path(self) -> Path:
        """Where the plugin's options stand inside its owner."""
        return ("plugins", self.written or self.name, *self.under)

    @property
    def priority(self) -> int:
        """APISIX's priority of the plugin (``_meta.priority`` wins)."""
        meta = self.config.get("_meta")
        if isinstance(meta, Mapping) and isinstance(meta.get("priority"), int):
            return int(meta["priority"])
        known = facts().get(self.name)
        return known.priority if known else 0

    @property
    def late(self) -> bool:
        """True for a plugin that refuses only in APISIX's access phase, after every rewrite phase."""
        known = facts().get(self.name)
        return known is not None and "rewrite" not in known.phases

    @property
    def preflights(self) -> tuple[str, ...]:
        """Methods that a check leaves alone: OPTIONS, where cors answers each of them before the check.

        That is cors of the route, or of a global rule, switched on and under no condition of its own. Asked
        in APISIX's order: a check that runs before cors sees the preflights, too.
        """
        return ("OPTIONS",) if "corsPolicy" in self.draft.http else ()

    def guard(
        self,
        name: str,
        conditions: Sequence[Condition],
        http: Mapping[str, Any],
        patch: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a rule above the route's own; ``_meta.error_response`` replaces what a refusal says."""
        answer = http.get("directResponse")
        meta = self.config.get("_meta")
        text = meta.get("error_response") if isinstance(meta, Mapping) else None
        if text and isinstance(answer, Mapping) and int(answer["status"]) >= 400:
            said = text if isinstance(text, str) else json.dumps(text, separators=(",", ":")) + "\n"
            http = {**http, "directResponse": {**answer, "body": {"string": said}}}
            if not isinstance(text, str):
                http["headers"] = {"response": {"set": {"content-type": "application/json"}}}
        self.draft.guards.append(Guard(name, self.priority, tuple(conditions), http, self.late, patch or {}))

    def vary(self, variants: Variants) -> None:
        """Lay the first alternative whose conditions hold over the route's action."""
        if variants:
            self.draft.variants.append(tuple(variants))

    def ports(self) -> dict[int, int]:
        """Return the new gateway's port for each port that ``server_port`` may name."""
        plain, tls = self.job.target.http_port, self.job.target.https_port
        return {9080: plain, 9443: tls, 80: plain, 443: tls, plain: plain, tls: tls}

    def _mark(self, keys: tuple[str, ...], fidelity: Fidelity, target: str, note: str) -> None:
        if not keys:
            self.job.mark(self.owner, self.path, fidelity, target, note)
        for key in keys:
            if key in self.config:
                self.job.mark(self.owner, (*self.path, key), fidelity, target, note)

    def exact(self, *keys: str, target: str = "", note: str = "") -> None:
        """These keys (none: the whole plugin) keep their meaning."""
        self._mark(keys, Fidelity.EXACT, target, note)

    def approximate(self, *keys: str, note: str, target: str = "") -> None:
        """These keys are converted, with the difference *note*."""
        self._mark(keys, Fidelity.APPROXIMATE, target, note)

    def manual(self, *keys: str, note: str, target: str = "") -> None:
        """A person has to do *note*."""
        self._mark(keys, Fidelity.MANUAL, target, note)

    def none(self, *keys: str, note: str) -> None:
        """These keys have no counterpart."""
        self._mark(keys, Fidelity.NONE, "", note)

    def ignored(self, *keys: str, note: str) -> None:
        """These keys change nothing."""
        self._mark(keys, Fidelity.IGNORED_DEFAULT, "", note)

    def block(self, reason: str, remedy: str) -> bool:
        """Hold the route back. True when it is held; False when a person has signed for the loss."""
        held = self.job.block(self.owner, self.name, self.draft.resource, reason, remedy)
        self.draft.blocked |= held
        self._mark((), Fidelity.MANUAL, "", f"{reason}; {remedy}")
        return held


Rule = Callable[[Use], None]
_RULES: dict[str, Rule] = {}


def handles(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for these plugin names."""

    def register(rule: Rule) -> Rule:
        for name in names:
            _RULES[name] = rule
        return rule

    return register


@cache
def handled() -> Mapping[str, Rule]:
    """Return all rules by plugin name, after importing every module of this package."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if module.name != "registry":
            importlib.import_module(f"{package}.{module.name}")
    return _RULES


_META = {
    "priority": (Fidelity.APPROXIMATE, "refusals keep the order; the order of Istio's own filters is fixed"),
    "disable": (Fidelity.IGNORED_DEFAULT, "the plugin is on"),
    "filter": (Fidelity.EXACT, "the conditions of the plugin's rules"),
}


def _meta(use: Use) -> Mapping[str, Any]:
    meta = use.config.get("_meta")
    if not isinstance(meta, Mapping):
        return {}
    for key in meta:
        fidelity, note = _META.get(key, (Fidelity.MANUAL, "not carried over"))
        use.job.mark(use.owner, (*use.path, "_meta", key), fidelity, "", note)
    return meta


def _error_response(use: Use, before: int) -> None:
    """Account for ``_meta.error_response``: only rules that answer themselves can say it."""
    guards = use.draft.guards[before:]
    told = bool(guards) and not use.draft.filters and not use.draft.policies
    note = "" if told else "Envoy's own text is sent instead"
    fidelity = Fidelity.EXACT if told else Fidelity.APPROXIMATE
    use.job.mark(use.owner, (*use.path, "_meta", "error_response"), fidelity, "directResponse", note)


def _under_condition(use: Use, rule: Rule, raw: Any) -> None:
    """Run a rule whose plugin only acts where ``_meta.filter`` holds.

    The rule writes to a draft of its own; what it left there goes to the route's draft under the
    condition. Filters, policies and destinations cannot be put under one.
    """
    where = from_vars(raw, use.ports())
    draft = use.draft
    trial = replace(
        draft,
        http={},
        backends=list(draft.backends),
        mirrors=list(draft.mirrors),
        terminal=None,
        guards=[],
        splits=[],
        variants=[],
        filters={},
        patches={},
        policies=[],
    )
    probe = replace(use, draft=trial)
    rule(probe)
    draft.blocked |= trial.blocked
    draft.mirrors = trial.mirrors
    if trial.filters or trial.patches or trial.policies or trial.splits or trial.backends != draft.backends:
        raise Inexpressible("its _meta.filter would have to switch an Envoy filter or a destination")
    for one in trial.guards:
        draft.guards.append(replace(one, conditions=tuple(combine_all(where, one.conditions))))
    if trial.terminal is not None:
        answer = {**{key: trial.http[key] for key in ("headers",) if key in trial.http}, **trial.terminal}
        probe.guard("filter", where, answer)
        draft.guards.append(trial.guards[-1])
    elif trial.http:
        use.vary([(where, trial.http)])
    for variants in trial.variants:
        use.vary([(combine_all(where, conditions), overlay) for conditions, overlay in variants])


def apply_plugin(use: Use) -> None:
    """Convert one plugin, or hold its route back. Every key of it is accounted for afterwards."""
    job, fact = use.job, facts().get(use.name)
    rule = handled().get(use.name)
    meta = _meta(use)
    before = len(use.draft.guards)
    if rule is None:
        _unhandled(use, fact)
    else:
        try:
            if meta.get("filter"):
                _under_condition(use, rule, meta["filter"])
            else:
                rule(use)
        except Inexpressible as reason:
            use.block(str(reason), "rewrite the option so that Envoy can express it, or translate by hand")
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            # The option has a shape that APISIX's own schema would refuse; reported, never a traceback.
            use.block(
                f"its options are not valid for APISIX ({type(error).__name__}: {error})",
                "correct the plugin's options at the place named",
            )
        if meta.get("error_response"):
            _error_response(use, before)
    for leaf in job.ledger.open_leaves(use.owner, use.path):
        job.mark(use.owner, leaf, Fidelity.MANUAL, "", f"option of {use.name} that gateshift does not know")
        job.warn(f"{use.owner.origin}: {use.name} has an option that gateshift does not know: {leaf[-1]}")
    if fact is not None and fact.guards_access_or_money:
        hold_unless_exact(use)


_SHOWN = 6


def hold_unless_exact(use: Use) -> None:
    """Hold the route until a person has signed for the differences of a security or billing plugin."""
    job = use.job
    if job.held(use.owner, use.name, use.draft.resource):
        return
    options: dict[str, list[str]] = {}
    for leaf, fidelity, note in job.ledger.differences(use.owner, use.path):
        option = format_path(leaf[len(use.path) :][:1])
        known = options.setdefault(note or str(fidelity), [])
        if option and option not in known:
            known.append(option)
    if not options:
        return
    texts = [f"{', '.join(names)}: {note}" if names else note for note, names in options.items()]
    rest = f"; and {len(texts) - _SHOWN} more in the ledger" if len(texts) > _SHOWN else ""
    held = job.block(
        use.owner,
        use.name,
        use.draft.resource,
        f"converted, but not exactly: {'; '.join(texts[:_SHOWN])}{rest}",
        "read the differences, then sign under translate.accept (resource `*` signs them for this plugin "
        "everywhere)",
        difference=True,
    )
    use.draft.blocked |= held


def _unhandled(use: Use, fact: Fact | None) -> None:
    if fact is None:
        use.block(
            "it is no plugin of APISIX 3.18, so what it protects is unknown",
            "translate it by hand, or sign that the route may go without it",
        )
    elif fact.guards_access_or_money or fact.category == "ai":
        use.block(
            f"{fact.category} plugin without an equivalent in Istio ({fact.fidelity})",
            "put the same control in front of the backend (ext_authz, Wasm), then sign for it",
        )
    elif fact.risk == "behaviour":
        use.block(
            f"{fact.category} plugin without an equivalent in Istio: clients would see different answers",
            "move the behaviour into the backend, then sign for it",
        )
    elif fact.risk == "observability":
        use.manual(note="collect the gateway's JSON access log and metrics with the cluster's own agent")
    else:
        use.none(note="an APISIX-internal helper: nothing to migrate")
