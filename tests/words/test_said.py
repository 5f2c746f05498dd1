"""What a run says, it says in Chinese too: lines of progress, notes, refusals, and what happened in an error.

Read off the code as the hints are (test_hints.py), in every room that speaks to a person.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from gateshift import errors
from gateshift.params.load import validate
from tests.words.reading import LIB, Module, Said, english

SPEAKERS = {
    **dict.fromkeys(("say", "progress", "line", "Refusal", "_stand_back", "Illegal"), 0),
    **dict.fromkeys(("Note", "need"), 1),
}
"""Functions that say something, and which of their arguments it is."""
ROOMS = (
    *(
        "runbook",
        "migration",
        "traffic",
        "metrics",
        "cluster",
        "apisix",
        "archive",
        "diagnose",
        "cli",
        "judge",
    ),
    *("params", "istio", "translate", "lab", "rehearse", "notify", "desk", "notebook"),
)


def wanted(node: ast.AST) -> Iterator[ast.expr]:
    """What is given to a speaker, and the message of an error."""
    if not isinstance(node, ast.Call):
        return
    name = getattr(node.func, "id", getattr(node.func, "attr", ""))
    place = 0 if name in errors.__all__ else SPEAKERS.get(name)
    if place is not None and len(node.args) > place:
        yield node.args[place]


PUT_TOGETHER = {
    # The first part is made above it and has its own sentences (reason.soak.*): tested below.
    ("runbook/soak.py", "7001 of 70027003"),
    ("runbook/soak.py", "7001: the stable time is on record7002"),
    # Sentences of its own for each problem: a general one would match any text of that form. Tested below.
    ("traffic/route53_api.py", "7001: 7002 for 7003 s"),
    ("traffic/cloudflare.py", "7001: 7002 for 7003 s"),
}
NOT_READ = {
    # Sentences that are made elsewhere, there from the catalogue or found by this test or others.
    ("runbook/apply.py", "said"),
    ("runbook/base.py", "refused.why"),
    ("runbook/base.py", "why"),
    ("runbook/base.py", "self._gate.go_through(plan)"),
    ("runbook/context.py", "str(error)"),
    ("runbook/install.py", "left.title"),
    ("runbook/observe.py", "self._line(verdict, arrived)"),
    ("runbook/setup.py", "plan.title"),
    ("runbook/setup.py", "side.missing.detail"),
    ("migration/lock.py", "self._describe(_content(descriptor))"),
    ("migration/lock.py", "self._describe(found)"),
    ("migration/lock.py", "self._lost"),
    ("migration/transitions.py", "why"),
    ("traffic/cloudflare.py", "problem"),
    ("traffic/istio_first.py", "'; '.join(problems)"),
    ("traffic/istio_first.py", "str(error)"),
    ("traffic/records.py", "'; '.join(found)"),
    ("traffic/replace.py", "str(error)"),
    ("traffic/split.py", "'; '.join(obstacles.values())"),
    ("traffic/split.py", "str(error)"),
    ("traffic/split_crd.py", "'; '.join(problems)"),
    ("traffic/split_crd.py", "str(error)"),
    ("traffic/staged.py", "'; '.join(silent)"),
    # Several reasons in one: each is found by itself, and what surrounds them is tested below.
    (
        "cluster/apply.py",
        (
            "f'{len(refused)} of {len(wanted)} objects are refused, nothing was applied: ' + "
            "'; '.join((str(e) for e in refused[:10]))"
        ),
    ),
    (
        "cluster/custom_resources.py",
        (
            '"APISIX\'s configuration cannot be read from the cluster, these rights are missing: " + '
            "'; '.join(dict.fromkeys(reading.denied))"
        ),
    ),
    (
        "cluster/install.py",
        (
            "f'istioctl install failed: {last_lines(printed)}' + "
            "(f\". Reasons: {'; '.join(why)}\" if why else '')"
        ),
    ),
    (
        "lab/build.py",
        "f'building {group.name} failed:\\n' + '\\n'.join(last)",
    ),
    ("cluster/install.py", "standing"),
    ("cli/notebooks.py", "outcome.error or 'interrupted'"),
    ("params/load.py", "_explain(error, source)"),
    ("params/unset.py", "'\\n'.join(lines)"),
    ("lab/lifecycle.py", "said"),
    ("rehearse/screen.py", "text"),
    ("notebook/progress.py", "line"),
    ("notebook/progress.py", "newest[0]"),
    ("notebook/progress.py", "waiting.line(newest[0])"),
    ("migration/lock.py", 'self._lost or "this run does not hold the migration\'s lock"'),
}
"""Texts that cannot be read off the code: file and expression."""
PATHS = [path for room in ROOMS for path in sorted((LIB / room).rglob("*.py"))]
MODULES = [Module(path, LIB, wanted) for path in PATHS]
SAID = {
    said.text: said
    for module in MODULES
    for said in module.said
    if (module.name, said.text) not in PUT_TOGETHER
}


@pytest.mark.parametrize("said", [pytest.param(said, id=said.place) for said in SAID.values()])
def test_each_sentence_is_said_in_chinese_with_all_its_values(said: Said) -> None:
    assert english(said) == ""


NO_WAIT = "the rollback does not wait for it: that run ends at its next look into the journal"
COPY = (
    "the cluster knows record 7 of migration shop, which this journal does not have: "
    "it is another copy of the archive, an older one, or was replaced"
)
OUTPUTS = "work in the outputs folder of the earlier runs, or restore it"


def test_each_sentence_is_read() -> None:
    found = {(name, what) for module in MODULES for name, what in module.not_read}
    assert {one for one in found if "wait_in_sync" not in one[1]} == NOT_READ


@pytest.mark.parametrize(
    "text",
    [
        "1200 requests, 3 errors; stable for 2 days of 14",
        "1200 requests, 3 errors; stable for 14 days: the stable time is on record",
        "the lock file is gone or names another holder",
        "this run does not hold the migration's lock",
        "cluster: A holds the migration's Lease; it expires in 12 s unless renewed",
        f"a holds the migration's lock; it expires in 12 s unless renewed; {NO_WAIT}",
        f"{COPY}; a rollback goes on in any case ({OUTPUTS}; to give it up: `kubectl annotate`)",
        "Z1: Route 53 kept answering Throttling for 30 s",
        "Z1: Route 53 cannot be reached (EndpointConnectionError) for 30 s",
        "Z1: Cloudflare kept answering 503 for 30 s",
        "Z1: Cloudflare cannot be reached for 30 s",
        "record 7 (shift.done): its lock (token 1) was taken over (token 2)",
        "record 7 (shift.done): not legal while the migration is rolled back",
        "3 of 5 objects are refused, nothing was applied: VirtualService a/b: bad; Gateway a/c: bad",
        "APISIX's configuration cannot be read from the cluster, these rights are missing: list secrets",
        "istioctl install failed: exit 1",
        "istioctl install failed: exit 1. Reasons: no room; no nodes",
        "building istio failed:\nundefined: foo",
        "outputs/m/journal.jsonl: cannot be written: Permission denied",
        "x.yaml: metrics.url: ${env:PROM} has no value\nx.yaml: apisix.admin_key: ${env:KEY} has no value",
        "x.yaml: foo: unknown key; remove it or correct its spelling\nx.yaml: stages: this key is required",
        "stable run: error rate 2 %, limit 1 %; P95 could not be measured: there are no latency buckets",
    ],
)
def test_what_is_put_together_is_said_in_chinese_part_by_part(text: str) -> None:
    assert english(Said("", text)) == ""


def _set(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        *sections, last = path.split(".")
        for name in sections:
            data = data.setdefault(name, {})
        data[last] = value

    return change


def _of_lab(name: str) -> object:
    return 8080 if name.endswith("port") else {} if name == "connect_to" else "http://a.example"


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(_set(path, value), id=f"{path}={value}")
        for path, value in {
            "gate_wait": "120",
            "istio.version": 1.31,
            "istio.revision": 7,
            "istio.replicas_min": "many",
            "verify.generated": -1,
            "verify.unsafe_methods": "perhaps",
            "cluster": "here",
            "stages": [],
            "mode": "maybe",
            "traffic.mechanism": "cloudflare",
            "traffic.unheard": 1,
            "traffic.mechansim": "route53",
            "metrics.url": "${env:NOT_SET_ANYWHERE}",
            "apisix.read_cluster": True,
            "notify.on": ["birthday"],
            "archive.s3_mode": "WEAK",
            "environment": "moon",
        }.items()
    ],
)
def test_params_are_refused_in_chinese(broken: Callable[[dict[str, Any]], object]) -> None:
    """What the model itself says, whatever rule it is; only a key's own text may stay."""
    data = yaml.safe_load((LIB.parents[1] / "params" / "lab.yaml").read_text(encoding="utf-8"))
    broken(data)
    with pytest.raises(errors.ParamsError) as caught:
        validate(data, source="x.yaml", resolvers={"lab": _of_lab})
    assert len(str(caught.value).splitlines()) == 1, "more is wrong than was broken"
    assert english(Said("", str(caught.value))) == "", str(caught.value)
