"""Runbooks before any traffic moves: preflight, translate, verify."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gateshift.archive.files import atomic_write
from gateshift.cluster import preflight as cluster_preflight
from gateshift.cluster import verify as cluster_verify
from gateshift.errors import Blocked, MetricsError
from gateshift.judge.model import MissingKind, Side
from gateshift.metrics.sampler import until_known
from gateshift.notebook.progress import say
from gateshift.notebook.show import Note, Table
from gateshift.plan import Plan
from gateshift.runbook.base import Runbook
from gateshift.runbook.context import Context
from gateshift.runbook.source import read_configuration, translate_now
from gateshift.translate import prove, write_translation
from gateshift.words import gloss, tell, term

__all__ = ["Preflight", "Translate", "Verify"]

_SCRAPED = 12.0
"""Seconds in which a scrape that failed may be followed by one that does not; a check has 19."""


def checks_table(title: str, checks: Sequence[Any], context: Context) -> Table:
    """Render checks of preflight or verify, and keep them in the run's folder for pipelines."""
    columns = ("result", "check", "measured", "why it matters", "remedy")
    rows = tuple((c.status, c.name, c.measured, c.why, c.remedy) for c in checks)
    keys = ("result", "name", "measured", "why", "remedy")
    kept = [dict(zip(keys, (str(v) for v in row), strict=True)) for row in rows]
    # What was measured can be a server's answer or an address with its password.
    text = json.dumps(context.journal.redactor.value(kept), indent=1, ensure_ascii=False)
    atomic_write(context.run_folder / "checks.json", text + "\n")
    shown = tuple((status, term(name), *rest) for status, name, *rest in rows)
    return Table(title, columns, shown)


class Preflight(Runbook):
    """``00_preflight``: everything that would stop the migration, known beforehand."""

    name: ClassVar[str] = "00_preflight"
    title: ClassVar[str] = "Preflight"
    changes: ClassVar[bool] = False

    def read(self) -> object:
        """Run all checks side by side and show them."""
        self.checks = cluster_preflight.run(
            self.params,
            self.context.cluster,
            progress=say,
            read_traffic=self._read_traffic,
            read_metrics=self._read_metrics,
            translated=self._translated,
        )
        return checks_table("Preflight", self.checks, self.context)

    def _read_traffic(self) -> object:
        from gateshift.traffic import before_the_install  # noqa: PLC0415 - only when this check runs

        apisix = self.context.apisix_target
        # Before the install there is no second load balancer; reading the records needs none.
        shifter = before_the_install(
            self.params,
            apisix_target=apisix,
            istio_target=self.context.istio_target or apisix,
            objects=lambda: self.context.cluster,
        )
        weights = shifter.read()
        shifter.check_access()
        return weights

    def _translated(self) -> Sequence[Mapping[str, Any]]:
        """Translate what is there now, only to know hosts and backends; 20_translate judges it."""
        return translate_now(self.context, read_configuration(self.context)).objects

    def _read_metrics(self) -> float | None:
        step = self.params.metrics.step

        def look() -> Side:
            now = self.context.now()
            return self.context.sampler.sample(now - step * 4, now).baseline

        side = until_known(look, seconds=_SCRAPED, every=min(step, 1.0))
        if side.missing is not None and side.missing.kind is MissingKind.QUERY_ERROR:
            # Not a matter of APISIX's metrics: nobody could be asked for them.
            raise MetricsError(side.missing.detail, hint="check metrics.url and its credentials in params")
        return side.requests

    def check(self) -> object:
        """Record the outcome; a failed check holds the migration."""
        failed = [c.name for c in self.checks if c.status == "fail"]
        self.record("preflight.done", ok=not failed, failed=failed)
        if failed:
            raise Blocked(
                f"preflight: {len(failed)} of {len(self.checks)} checks failed: {', '.join(failed)}",
                hint="each failed check names its remedy in the table above",
            )
        return Note("pass", f"{len(self.checks)} checks, none failed")


class Translate(Runbook):
    """``20_translate``: the APISIX configuration as Istio objects, with ledger and proof."""

    name: ClassVar[str] = "20_translate"
    title: ClassVar[str] = "Translate"
    changes: ClassVar[bool] = False

    def read(self) -> object:
        """Read the configuration and count what is there."""
        self.configuration = read_configuration(self.context)
        rows = [(k.value, len(v)) for k, v in self.configuration.resources.items() if v]
        notes = [(f.severity.value, f"{f.origin}: {f.message}") for f in self.configuration.findings]
        return Table("APISIX configuration", ("kind", "count"), tuple(rows + notes))

    def make_plan(self) -> Plan:
        """Translate; the plan is the set of objects (nothing is applied here)."""
        self.translation = translate_now(self.context, self.configuration)
        return Plan(
            kind=self.name, title="Translation", steps=(), way_back="nothing is changed in the cluster"
        )

    def objects(self) -> Table:
        """Show the objects by file."""
        rows = [
            (file, o["kind"], o["metadata"]["name"], o["metadata"].get("namespace", ""))
            for file, objects in self.translation.files.items()
            for o in objects
        ]
        return Table("Istio objects", ("file", "kind", "name", "namespace"), tuple(rows))

    def ledger(self) -> Table:
        """Show how every source field ends, differences first.

        Above them stand what blocks, with what a signature names, who signed for what, and, if asked, the
        form of each host.
        """
        entries = [e for e in self.translation.ledger if e.status not in {"exact", "ignored-default"}]
        counts: dict[str, int] = {}
        for entry in self.translation.ledger:
            counts[str(entry.status)] = counts.get(str(entry.status), 0) + 1
        title = tell("ledger.title", counts=", ".join(f"{n} {gloss(s)}" for s, n in sorted(counts.items())))
        rows = [
            ("blocks", f"{b.resource} {b.plugin}", f"{b}; a signature names {b.covers}")
            for b in self.translation.blockers
        ]
        rows += [("signed", f"{b.resource} {b.plugin}", b.held_by) for b in self.translation.accepted]
        rows += [(one.form, f"host {one.host}", one.why) for one in self.translation.forms]
        rows += [(str(e.status), str(e.origin), e.note) for e in entries[:200]]
        return Table(title, ("ends as", "source field", "difference or what to do"), tuple(rows))

    def perform(self, plan: Plan) -> object:
        """Nothing is applied here."""
        return Note("pass", plan.title)

    def check(self) -> object:
        """Write the files, prove the routing; blockers and disagreements hold."""
        folder = self.context.run_folder / "istio"
        clean = self.context.journal.redactor.text
        for path in write_translation(self.translation, folder):
            # The archive's copy, which nothing is applied from: a header may carry a token under any name.
            text = path.read_text(encoding="utf-8")
            if clean(text) != text:
                atomic_write(path, clean(text))
        if self.translation.blockers:
            names = "; ".join(f"{b}; a signature names {b.covers}" for b in self.translation.blockers)
            raise Blocked(
                f"translate: {len(self.translation.blockers)} blockers: {names}",
                hint="translate by hand, or sign for it under translate.accept in params (who and why)",
            )
        proof = prove(self.configuration, self.translation, requests=self.params.translate.proof_requests)
        if proof.disagreements:
            raise Blocked(f"translate: routing differs, smallest example: {proof.disagreements[0]}")
        return Note("pass", f"{proof.checked} generated requests choose the same route in APISIX and Istio")


class Verify(Runbook):
    """``40_verify``: the new gateway answers as the old one, before any user reaches it."""

    name: ClassVar[str] = "40_verify"
    title: ClassVar[str] = "Verify"
    changes: ClassVar[bool] = False

    def read(self) -> object:
        """Run the guide's checks, the functional probes, and the same requests at both gateways."""
        from gateshift.runbook.parity import parity_checks  # noqa: PLC0415 - parity imports this module

        checks = cluster_verify.run(
            self.params,
            self.context.cluster,
            istio_target=self.context.istio_target,
            apisix_target=self.context.apisix_target,
            progress=say,
        )
        say("replaying the same requests at both gateways")
        self.checks = [*checks, *parity_checks(self.context)]
        return checks_table("Verify", self.checks, self.context)

    def check(self) -> object:
        """Record the outcome; a failed check holds the migration."""
        failed = [c.name for c in self.checks if c.status == "fail"]
        self.record("verify.done", ok=not failed, failed=failed)
        kept = [[str(c.status), c.name, str(c.measured)] for c in self.checks]
        text = json.dumps(self.context.journal.redactor.value(kept), indent=1)
        atomic_write(self.context.run_folder / "verify.json", text)
        if failed:
            raise Blocked(f"verify: {', '.join(failed)} failed", hint="gateshift diagnose names the cause")
        return Note("pass", f"{len(self.checks)} checks, none failed")
