"""The registry of plugin rules and the view that a rule gets of its plugin."""

from __future__ import annotations

import csv
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from gateshift.apisix.model import Resource
from gateshift.translate.conditions import Inexpressible
from gateshift.translate.job import Draft, Job
from gateshift.translate.ledger import Path
from gateshift.translate.model import Fidelity
from gateshift.translate.upstreams import UpstreamBook

__all__ = ["Fact", "Use", "apply_plugin", "facts", "handled", "handles"]


@dataclass(frozen=True, slots=True)
class Fact:
    """What is known of one APISIX plugin: how well it maps, and what dropping it would cost."""

    name: str
    priority: int
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
        row["name"]: Fact(row["name"], int(row["priority"]), row["category"], row["fidelity"], row["risk"])
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

    @property
    def path(self) -> Path:
        """Where the plugin stands inside its owner."""
        return ("plugins", self.name)

    @property
    def priority(self) -> int:
        """APISIX's priority of the plugin (``_meta.priority`` wins)."""
        meta = self.config.get("_meta")
        if isinstance(meta, Mapping) and isinstance(meta.get("priority"), int):
            return int(meta["priority"])
        known = facts().get(self.name)
        return known.priority if known else 0

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


def _meta(use: Use) -> None:
    meta = use.config.get("_meta")
    if not isinstance(meta, Mapping):
        return
    for key in meta:
        place = (*use.path, "_meta", key)
        if key == "filter" and meta[key]:
            use.job.mark(
                use.owner, place, Fidelity.MANUAL, "", "a plugin under a condition has no equivalent"
            )
            use.block("_meta.filter runs the plugin under a condition", "split the route by that condition")
        elif key == "priority":
            note = "the order of Istio's filters is fixed"
            use.job.mark(use.owner, place, Fidelity.APPROXIMATE, "", note)
        elif key == "disable":
            use.job.mark(use.owner, place, Fidelity.IGNORED_DEFAULT, "", "the plugin is on")
        else:
            use.job.mark(use.owner, place, Fidelity.MANUAL, "", "not carried over")


def apply_plugin(use: Use) -> None:
    """Convert one plugin, or hold its route back. Every key of it is accounted for afterwards."""
    job, fact = use.job, facts().get(use.name)
    rule = handled().get(use.name)
    _meta(use)
    if rule is None:
        _unhandled(use, fact)
    else:
        try:
            rule(use)
        except Inexpressible as reason:
            use.block(str(reason), "rewrite the option so that Envoy can express it, or translate by hand")
        except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            # The option has a shape that APISIX's own schema would refuse; reported, never a traceback.
            use.block(
                f"its options are not valid for APISIX ({type(error).__name__}: {error})",
                "correct the plugin's options at the place named",
            )
    for leaf in job.ledger.open_leaves(use.owner, use.path):
        job.mark(use.owner, leaf, Fidelity.MANUAL, "", f"option of {use.name} that gateshift does not know")
        job.warn(f"{use.owner.origin}: {use.name} has an option that gateshift does not know: {leaf[-1]}")


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
