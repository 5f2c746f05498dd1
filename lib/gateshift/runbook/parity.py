"""Before the first shift: both gateways must answer the same requests alike."""

from __future__ import annotations

from collections.abc import Sequence

from gateshift.cluster.checks import Check, Status
from gateshift.errors import Blocked, GateshiftError
from gateshift.notebook.progress import say
from gateshift.params.model import Probe
from gateshift.runbook.context import Context
from gateshift.runbook.inputs import project_root
from gateshift.runbook.source import read_configuration
from gateshift.traffic import probes
from gateshift.traffic.requests import generated, recorded

__all__ = ["compare", "parity_checks", "requests_to_compare", "require_parity"]

_SHOWN = 5


def requests_to_compare(context: Context) -> tuple[Probe, ...]:
    """Return the params' probes, the recorded requests and the generated ones."""
    verify = context.params.verify
    found: list[Probe] = list(verify.probes)
    if verify.recorded:
        found += recorded(project_root() / verify.recorded)
    if verify.generated:
        found += generated(read_configuration(context), verify.generated)
    return tuple(found)


def compare(context: Context, requests: Sequence[Probe]) -> tuple[probes.Parity, ...]:
    """Send *requests* to both gateways' addresses and compare."""
    verify = context.params.verify

    def at(target: str) -> probes.Address:
        return probes.Address(host=target, connect_to=verify.connect_to, ca_file=verify.ca_file)

    return probes.parity(
        requests, at(context.apisix_target), at(context.istio_target), unsafe=verify.unsafe_methods
    )


def parity_checks(context: Context) -> tuple[Check, ...]:
    """Compare both gateways as 50_canary will before the first shift, so that a difference is known early."""
    name, why = "both gateways answer alike", "users must not notice by which gateway they are served"
    try:
        results = compare(context, requests_to_compare(context))
    except GateshiftError as error:
        return (Check(name, Status.FAIL, str(error), why, error.hint),)
    if not results:
        remedy = "add verify.probes, verify.recorded (a HAR file) or verify.generated (a number)"
        return (Check(name, Status.WARN, "nothing was compared", why, remedy),)
    differing = [r for r in results if not r.agrees and not r.skipped]
    sent = sum(1 for r in results if not r.skipped)
    skipped = len(results) - sent
    rest = f"; {skipped} not sent, their methods may change data" if skipped else ""
    if differing:
        remedy = "`gateshift diagnose` names the cause; correct the translation, apply and verify again"
        said = "; ".join(f"{r.name}: {r.why}" for r in differing[:_SHOWN])
        measured = f"{len(differing)} of {sent} requests differ{rest}: {said}"
        return (Check(name, Status.FAIL, measured, why, remedy),)
    return (Check(name, Status.PASS, f"{sent} requests answered alike{rest}", why),)


def require_parity(context: Context) -> None:
    """Raise :class:`~gateshift.errors.Blocked` when the gateways differ on any request that may be sent."""
    requests = requests_to_compare(context)
    results = compare(context, requests)
    differing = [f"{r.name}: {r.why}" for r in results if not r.agrees and not r.skipped]
    skipped = sum(1 for r in results if r.skipped)
    context.journal.append(
        "note.parity", compared=len(results) - skipped, skipped=skipped, differing=differing[:20]
    )
    if differing:
        raise Blocked(
            f"{len(differing)} of {len(results) - skipped} requests are answered differently by the two "
            f"gateways, nothing was moved: {'; '.join(differing[:5])}",
            hint="`gateshift diagnose` names the cause; correct the translation, apply and verify again",
        )
    if not results:
        say("parity: no probes, recorded or generated requests in verify, so nothing was compared")
    else:
        say(f"parity: {len(results) - skipped} requests answered alike by both gateways, {skipped} not sent")
