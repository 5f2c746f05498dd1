"""Every call of the code is in the permissions table: read from the source, so that no path is missed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import yaml

from gateshift.cluster import cleanup, permissions, uninstall
from gateshift.cluster.apply import PRUNED
from gateshift.cluster.objects import API_VERSIONS
from gateshift.cluster.permissions import needed
from gateshift.cluster.resources import Call
from tests.cluster.conftest import plural

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "lib" / "gateshift"
VERBS = {"get", "list", "delete"}
# Rooms that speak to the lab's own API, not as the migration's account.
APART = {"lab", "rehearse"}


def _written_out(node: ast.AST) -> list[str]:
    items = node.elts if isinstance(node, (ast.Tuple, ast.List)) else [node]
    found = [i.value for i in items if isinstance(i, ast.Constant) and isinstance(i.value, str)]
    return [kind for kind in found if kind.rpartition("/")[2][:1].isupper()]


def calls_in(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Yield (line, verb, kind) of each call on a cluster whose kind is written out, there or in a loop."""
    loops: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.For, ast.comprehension)) and isinstance(node.target, ast.Name):
            loops.setdefault(node.target.id, []).extend(_written_out(node.iter))
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        owner, first = ast.unparse(node.func.value), node.args[0]
        if owner.rpartition(".")[2] not in {"cluster", "_cluster", "c"} or node.func.attr not in VERBS:
            continue
        kinds = loops.get(first.id, []) if isinstance(first, ast.Name) else _written_out(first)
        for kind in kinds:
            yield node.lineno, node.func.attr, kind


def call(verb: str, kind: str) -> Call:
    api_version, _, bare = kind.rpartition("/")
    group = (api_version or API_VERSIONS[bare][0]).rpartition("/")[0]
    return Call(verb, group, plural(bare))


def test_every_call_in_the_source_is_in_the_table() -> None:
    table = set(needed())
    found, missing = 0, []
    for path in SOURCE.rglob("*.py"):
        if path.relative_to(SOURCE).parts[0] in APART:
            continue
        for line, verb, kind in calls_in(ast.parse(path.read_text(encoding="utf-8"))):
            found += 1
            if call(verb, kind) not in table:
                missing.append(f"{path.relative_to(ROOT)}:{line}: {verb} {kind}")
    assert missing == []
    assert found > 60  # the search itself finds what there is


def test_a_call_that_the_table_lacks_is_found() -> None:
    tree = ast.parse('self.cluster.delete("Node", name)')
    ((_, verb, kind),) = calls_in(tree)
    assert call(verb, kind) not in set(needed())


def test_kinds_named_in_tables_are_covered() -> None:
    table = set(needed())
    for kind in PRUNED:
        assert {call(v, kind) for v in ("list", "patch", "create", "delete")} <= table, kind
    for kind in (*uninstall._KINDS, uninstall._LAST_KIND):
        assert {call(v, kind) for v in ("list", "delete", "update", "patch")} <= table, kind
    for kind in cleanup._DELETED:
        assert {call(v, kind) for v in ("get", "list", "create", "delete")} <= table, kind


def test_the_ready_manifest_is_the_table() -> None:
    documents = list(yaml.safe_load_all((ROOT / "deploy" / "rbac.yaml").read_text(encoding="utf-8")))
    kinds = [d["kind"] for d in documents]
    assert kinds == ["Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding"]
    assert documents[2] == yaml.safe_load(permissions.cluster_role())
    assert documents[3] == yaml.safe_load(permissions.binding("gateshift", "gateshift"))


def test_no_wildcard_and_nothing_that_runs_commands() -> None:
    for one in needed():
        assert "*" not in {one.verb, one.group, one.resource}
        assert (one.resource, one.subresource) != ("pods", "exec")
        assert one.verb != "impersonate"
    deletes = {c.resource for c in needed() if c.verb == "delete"}
    assert not deletes & {"nodes", "persistentvolumes", "storageclasses", "events"}
