"""The verdict on one canary stage: promote, hold or roll back, each with reasons and evidence.

A pure function: the same history, limits and times give the same verdict, bit for bit. Rolling back asks
for two things: the canary is worse than the baseline (evidence at the stage's share of the migration's
false-rollback budget) *and* above the limit; so an incident that both gateways share holds. At 100 % there
is no baseline: the limit alone is tested, at the full strength of the budget. Promoting asks for a
guarantee against "worse than the limit by the margin". Missing data never promote.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from gateshift.judge.findings import Finding, LatencyFinding
from gateshift.judge.measure import quantile, sum_buckets, totals, trailing_gap
from gateshift.judge.model import Decision, Missing, MissingKind, Sample, Side, Verdict
from gateshift.judge.stage_tests import ERROR_SHARE, RECENT, errors_test, latency_test
from gateshift.params.model import JudgeParams, StageParams
from gateshift.plan import digest_of

__all__ = ["EDITION", "Decision", "Verdict", "attempt_share", "evidence_curve", "judge"]

_FIRST_ATTEMPT = 0.9
"""Share of a stage's budget that its first observation may spend; those that resume it share the rest."""


def attempt_share(attempt: int | None) -> float:
    """Return the part of a stage's false-rollback budget that observation *attempt* (from 0) may spend.

    0.9, 0.05, 0.0167, ...: ``0.1 / (n (n + 1))`` for the n-th that resumes. However often a stage is
    resumed or entered again the parts sum to at most 1, so the budget of the migration holds. The first
    pays 0.1 units of evidence for it, the second asks for 2.9 more. None (a verdict recorded before
    observations were counted): all of it.
    """
    if attempt is None:
        return 1.0
    if attempt < 0:
        raise ValueError("observations are counted from 0")
    return _FIRST_ATTEMPT if attempt == 0 else (1 - _FIRST_ATTEMPT) / (attempt * (attempt + 1))


EDITION = 3
"""Edition of the judge, recorded with each verdict; raised when the same samples may be judged otherwise."""

_PRESENT = 0.1
"""Share of the traffic so far that the newest intervals must have: what is hardly used is not proven well."""

_SILENCE_EXPECTED = 30.0
"""Requests that must have been expected before silence counts as "traffic does not arrive": P = e^-30."""


@dataclass(slots=True)
class _Case:
    """What is known while one verdict is being reached."""

    history: Sequence[Sample]
    stage: StageParams
    params: JudgeParams
    now: float
    evidence: dict[str, Any] = field(default_factory=dict)


def judge(
    history: Sequence[Sample],
    stage: StageParams,
    params: JudgeParams,
    *,
    stage_index: int,
    stages: int,
    started: float,
    now: float,
    reference: Sequence[Side] = (),
    attempt: int | None = None,
) -> Verdict:
    """Judge a stage on *history*, the samples of this stage (all of them: its evidence runs from the first).

    *reference* are intervals of the baseline alone, from before the stage: they tell how much its errors
    burst. *attempt* counts the observations of this stage before this one: evidence starts anew with each,
    and :func:`attempt_share` divides the stage's budget among them. *started* is when the dwell began and
    *now* when the verdict is asked for (unix seconds). Samples
    newer than *now* are refused: a verdict may not know the future.
    """
    if any(sample.time > now for sample in history):
        raise ValueError("a sample is newer than the moment of the verdict")
    alpha = params.false_rollback_budget / stages * attempt_share(attempt)
    case = _Case(history, stage, params, now)
    case.evidence["inputs"] = {
        "judge": EDITION,
        "samples": len(history),
        "samples_digest": digest_of([sample.as_json() for sample in history]),
        "reference": len(reference),
        "reference_digest": digest_of([side.as_json() for side in reference]),
        "stage_index": stage_index,
        "stages": stages,
        "started": started,
        "now": now,
    }
    if attempt is not None:
        case.evidence["inputs"]["attempt"] = attempt
    errors = errors_test(history, stage, params, alpha * ERROR_SHARE, reference)
    latency = latency_test(history, stage, params, alpha * (1 - ERROR_SHARE), reference)
    case.evidence["errors"] = errors.as_json()
    case.evidence["latency"] = latency.as_json()
    case.evidence["missing"] = _missing_record(history)
    bad = [finding.rollback_reason for finding in (errors, latency.finding) if finding.rolls_back]
    if bad:
        return _verdict(case, Decision.ROLLBACK, bad)
    gone = _missing_reasons(case)
    if gone.beyond:
        return _verdict(case, Decision.ROLLBACK, gone.beyond)
    held = [*gone.holding, *_dwell(case, started), *_not_promotable(case, errors, latency)]
    if held:
        return _verdict(case, Decision.HOLD, held)
    return _verdict(case, Decision.PROMOTE, _promotion(case, errors, latency))


def _verdict(case: _Case, decision: Decision, reasons: Sequence[str]) -> Verdict:
    return Verdict(decision, tuple(reasons), _rounded(case.evidence))


def _rounded(value: Any) -> Any:
    """Nine significant digits: the last bits of a logarithm differ between CPUs and say nothing."""
    if isinstance(value, Mapping):
        return {key: (item if key == "inputs" else _rounded(item)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value


# --- missing data ---------------------------------------------------------------------------------------


def _missing_record(history: Sequence[Sample]) -> dict[str, dict[str, int]]:
    record: dict[str, dict[str, int]] = {"canary": {}, "baseline": {}}
    for sample in history:
        for name, counts in record.items():
            missing: Missing | None = getattr(sample, name).missing
            if missing is not None:
                counts[missing.kind.value] = counts.get(missing.kind.value, 0) + 1
    return record


@dataclass(slots=True)
class _Gone:
    holding: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)


def _missing_reasons(case: _Case) -> _Gone:
    gone = _Gone()
    if not case.history:
        gone.holding.append("no sample has been taken yet: nothing to judge")
        return gone
    allowance = case.params.missing_data_allowance
    # At 100 % the old gateway is expected to be silent: its missing figures say nothing about users.
    sides = ["canary"] if case.stage.weight_percent == 100 else ["canary", "baseline"]
    names = {"canary": "new gateway (Istio)", "baseline": "old gateway (APISIX)"}
    for side in sides:
        gap = trailing_gap(case.history, side, case.now)
        if gap is None:
            continue
        text = f"no figures of the {names[side]} for {gap.seconds:.0f} s: {gap.missing}"
        _sort(gone, text, gap.seconds, allowance)
    step = case.history[-1].time - case.history[-2].time if len(case.history) > 1 else 0.0
    age = case.now - case.history[-1].time
    if age > max(step / 2, 1.0) and len(case.history) > 1:
        missing = Missing(MissingKind.SCRAPE_GAP, "no sample was taken")
        _sort(gone, f"the newest sample is {age:.0f} s old: {missing}", age, allowance)
    silence = _silence(case)
    if silence is not None:
        _sort(gone, silence[1], silence[0], allowance)
    return gone


def _sort(gone: _Gone, text: str, seconds: float, allowance: float) -> None:
    if seconds > allowance:
        gone.beyond.append(f"{text}; longer than the allowance of {allowance:.0f} s")
    else:
        gone.holding.append(f"{text}; rolls back after {allowance:.0f} s")


def _silence(case: _Case) -> tuple[float, str] | None:
    """Find out whether the canary got no request at all while its share was due.

    Clients that cannot connect leave no trace at the gateway; only the missing requests show them. Where all
    traffic ends at once, the old gateway still counts for a while: its last scrape may be later, and a long
    connection is counted when it closes. So its requests must go on in the later half of the silence.
    """
    since = case.history[0].time
    quiet: list[Sample] = []
    for sample in reversed(case.history):
        if sample.canary.requests is None or sample.canary.requests > 0:
            since = sample.time
            break
        quiet.append(sample)
    if not quiet:
        return None
    weight = case.stage.weight_percent / 100
    if weight < 1:
        served = totals([sample.baseline for sample in quiet])[0]
        middle = (since + case.now) / 2
        lately = totals([sample.baseline for sample in quiet if sample.time > middle])[0]
        expected = lately * weight / (1 - weight)
        told = f"the old gateway served {served:.0f} meanwhile"
    else:
        before = case.history[: len(case.history) - len(quiet)]
        if len(before) < 2:
            return None
        rate = totals([s.canary for s in before])[0] / max(before[-1].time - before[0].time, 1e-9)
        expected = rate * (case.now - since)
        told = f"{expected:.0f} were due at the rate before"
    if expected < _SILENCE_EXPECTED:
        return None
    seconds = case.now - since
    missing = Missing(MissingKind.TOO_FEW_REQUESTS, told)
    return seconds, f"no request reached the new gateway for {seconds:.0f} s: {missing}"


# --- promotion ------------------------------------------------------------------------------------------


def _dwell(case: _Case, started: float) -> list[str]:
    elapsed = case.now - started
    unmeasured = 0.0
    for before, sample in zip(case.history, case.history[1:], strict=False):
        if sample.time > started and sample.canary.missing is not None:
            unmeasured += sample.time - max(before.time, started)
    case.evidence["dwell"] = {"elapsed": elapsed, "unmeasured": unmeasured, "wanted": case.stage.dwell}
    remaining = case.stage.dwell - (elapsed - unmeasured)
    # Half a millisecond forgives the sums of floating point, nothing more.
    if remaining <= 0.0005:
        return []
    note = f", {unmeasured:.0f} s of it unmeasured and not counted" if unmeasured else ""
    return [f"observed {elapsed:.0f} of {case.stage.dwell:.0f} s{note}"]


def _not_promotable(case: _Case, errors: Finding, latency: LatencyFinding) -> list[str]:
    held = []
    limit = case.stage.error_rate_limit_percent
    if errors.requests <= 0:
        held.append("no request of the new gateway was measured: nothing to judge")
        return held
    rate = 100 * errors.rate
    if rate > limit:
        held.append(f"error rate {rate:.3g} % is above the limit of {limit:g} %{_comparison(errors)}")
    elif errors.late is not None:
        count, late = errors.late
        newest = case.history[-count:]
        since = case.history[-count - 1].time if len(case.history) > count else newest[0].time
        span = newest[-1].time - since
        held.append(
            f"error rate {100 * late:.3g} % in the last {span:.0f} s is above the limit of {limit:g} %, "
            f"though {rate:.3g} % over the whole stage"
        )
    elif not errors.guaranteed:
        held.append(f"{_too_few(case, errors, 'errors', limit)}")
    elif fallen := _fallen(case):
        held.append(fallen)
    if latency.unknown:
        held.append(latency.unknown)
    elif not latency.finding.guaranteed:
        held.append(latency.hold_reason)
    return held


def _fallen(case: _Case) -> str:
    """Say how much less traffic than before the newest intervals saw; empty when it is not much less.

    Requests of before would prove well what nobody uses any more: at the end of a dwell without traffic the
    canary's present state is unknown.
    """
    history = case.history
    for count in (*RECENT, len(history) // 4):
        before, newest = history[:-count], history[-count:]
        if count < RECENT[0] or len(before) < 2:
            continue
        rate = totals([s.canary for s in before[1:]])[0] / max(before[-1].time - before[0].time, 1e-9)
        span = history[-1].time - before[-1].time
        seen = totals([s.canary for s in newest])[0]
        if rate * span >= _SILENCE_EXPECTED and seen < _PRESENT * rate * span:
            return (
                f"too few requests to go on: {seen:.0f} in the last {span:.0f} s, "
                f"{rate * span:.0f} were due at the rate before"
            )
    return ""


def _comparison(errors: Finding) -> str:
    if errors.baseline_requests <= 0:
        return ", with nothing to compare; not yet certain"
    base = f"{100 * errors.baseline_rate:.3g} %"
    if errors.relative < errors.relative_threshold:
        shared = errors.baseline_rate > 0 and errors.rate <= 2 * errors.baseline_rate
        what = "an incident shared by both gateways" if shared else "not yet certain that it is worse"
        return f", the old gateway shows {base}: {what}"
    return f", the old gateway shows {base}; not yet certain that the limit is exceeded"


def _too_few(case: _Case, errors: Finding, what: str, limit: float) -> str:
    worst = limit * (1 + case.params.margin)
    text = (
        f"too few requests to rule out {worst:g} % {what}: {errors.requests:.0f} seen with "
        f"{errors.events:.0f} {what}, evidence {errors.promotion:.1f} of {errors.promotion_threshold:.1f}"
    )
    span = case.history[-1].time - case.history[0].time if len(case.history) > 1 else 0.0
    if errors.promotion > 0.2 and span > 0:
        more = span * (errors.promotion_threshold / errors.promotion - 1)
        return f"{text}; enough in about {_duration(more)} at the present rate"
    rate = errors.requests / span if span > 0 else 0.0
    if rate > 0 and errors.events == 0:
        # Without errors and with independent ones, ln(2/guarantee)/limit requests are enough.
        need = (errors.promotion_threshold + math.log(2)) / (worst / 100)
        more = max(need - errors.requests, 0.0) / rate
        return f"{text}; enough in at least {_duration(more)} at the present rate"
    return text


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _promotion(case: _Case, errors: Finding, latency: LatencyFinding) -> list[str]:
    worst = case.stage.error_rate_limit_percent * (1 + case.params.margin)
    ruled_out = (
        f"error rate {100 * errors.rate:.3g} % over {errors.requests:.0f} requests; {worst:g} % or more is "
        f"ruled out (at most {100 * case.params.wrong_promotion:g} % chance of being wrong)"
    )
    reasons = [
        ruled_out,
        f"P95 {latency.p95}, limit {case.stage.p95_limit_ms:.0f} ms",
    ]
    if case.stage.weight_percent == 100:
        reasons.append(
            "all traffic is on the new gateway: judged against the limits alone, nothing to compare"
        )
    availability = 100 * (1 - errors.rate)
    if availability < case.stage.availability_percent:
        reasons.append(
            f"watch: availability {availability:.3f} % is below {case.stage.availability_percent:g} % "
            "though the stage's error limit is kept"
        )
    return reasons


def evidence_curve(
    history: Sequence[Sample],
    stage: StageParams,
    params: JudgeParams,
    *,
    stages: int,
    points: int = 60,
    reference: Sequence[Side] = (),
    attempt: int | None = None,
) -> list[tuple[float, float, float]]:
    """Return (time, rollback evidence, promotion evidence) along the history, each over its threshold.

    1 is where the decision falls. At most *points* moments are computed: a picture needs no more.
    """
    alpha = params.false_rollback_budget / stages * attempt_share(attempt) * ERROR_SHARE
    # Powers of two, so that a redraw finds nearly all of its points computed before.
    step = 1 << max(0, math.ceil(math.log2(max(len(history), 1) / points)))
    ends = sorted({*range(step, len(history) + 1, step), len(history)} - {0})
    known = tuple(reference)
    return [
        (history[end - 1].time, *_curve_point(tuple(history[:end]), stage, params, alpha, known))
        for end in ends
    ]


@lru_cache(maxsize=512)
def _curve_point(
    history: tuple[Sample, ...],
    stage: StageParams,
    params: JudgeParams,
    alpha: float,
    reference: tuple[Side, ...],
) -> tuple[float, float]:
    finding = errors_test(history, stage, params, alpha, reference)
    return finding.rollback_ratio, finding.promotion_ratio


def p_quantiles(history: Sequence[Sample], side_name: str) -> dict[str, float | None]:
    """P50, P90, P95 and P99 in milliseconds over the whole history of one side."""
    buckets = sum_buckets([getattr(sample, side_name) for sample in history])
    return {f"p{q}": quantile(buckets, q / 100).value for q in (50, 90, 95, 99)}
