"""The commands that the documentation shows, and who executes each.

A block of a page is what stands in a ``console`` fence behind ``$``; a command in the text counts when it has
an option. Each is executed as it stands: at once (``NOW``), in one story on the lab (``ON_LAB``), or by the
test that ``ELSEWHERE`` names, with the reason why not here. A command without one of these fails.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "outputs/README.md")),
        *(ROOT / "docs").rglob("*.md"),
    ]
)
SECRETS = {"APISIX_ADMIN_KEY": "admin-key-of-a-test", "PROBE_PASSWORD": "p", "PROBE_TOKEN": "t"}

_FENCE = re.compile(r"^```console[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`((?:\.venv/bin/)?(?:gateshift|make|papermill|kubectl|grep) [^`\n]+)`(?!`)")
# Every command in its table counts, options or not: each row has to be shown.
_WHOLE = ROOT / "docs" / "comparison.md"
# What a reader puts in for himself.
PLACEHOLDERS = {
    "outputs/<migration>": "outputs/sample",
    "[PATH]": "outputs/sample",
    "ARCHIVE": "outputs/sample",
    "DIR": "k8s",
    "--in apisix.yaml": "--in params/lab/apisix.yaml",
}


@dataclass(frozen=True)
class Expected:
    """How a command ends: its exit code, and a text in what it prints."""

    says: str
    code: int = 0


# In this order, in one workspace.
NOW: dict[str, Expected] = {
    "gateshift translate --in apisix.yaml --out DIR": Expected("blocker", 3),
    "gateshift diagnose --files k8s/*.yaml": Expected("0 errors"),
    "gateshift audit verify outputs/<migration>": Expected("ok  "),
    "gateshift audit verify outputs/sample": Expected("ok  "),
    "gateshift audit verify [PATH]": Expected("ok  "),
    "gateshift history outputs/sample": Expected("rolled back"),
    "gateshift status -f params/production.yaml": Expected("00_preflight"),
    "gateshift preflight -f wrong.yaml; echo $?": Expected("stages.0.dwell"),
}

# The story of one migration on the lab, whose params stand in every params file of the workspace. A command
# that waits at its gate is approved by the next command, in another terminal, as the pages say.
GATED = "another terminal"
_PLAN = "gateshift canary -f params/production.yaml -p mode=plan --json --summary summary.md > result.txt"
_BY_PAPERMILL = (
    "papermill --engine gateshift notebooks/50_canary.ipynb out/50_canary.ipynb"
    ' -f params/production.yaml -p mode act -p approve "$DIGEST"'
)
GLUE = frozenset({"gateshift approve DIGEST"})
"""What the story needs between the commands of the pages."""
ON_LAB: tuple[tuple[str, Expected], ...] = (
    ("gateshift lab up", Expected("")),
    ("gateshift preflight -f params/lab.yaml", Expected("archived:")),
    ("gateshift preflight -f params/lab.yaml -p lang=zh", Expected("")),
    ("gateshift preflight -f params/shop.yaml", Expected("archived:")),
    ("papermill notebooks/00_preflight.ipynb out.ipynb -f params/lab.yaml", Expected("")),
    ("gateshift install -f params/lab.yaml --act", Expected(GATED)),
    ("gateshift approve <digest>", Expected("")),
    ("gateshift install -f params/shop.yaml --act", Expected("Nothing would change")),
    ("gateshift status", Expected("installed")),
    ("gateshift translate -f params/shop.yaml", Expected("")),
    ("gateshift apply -f params/production.yaml -p mode=plan", Expected("digest")),
    ("gateshift apply -f params/shop.yaml --act", Expected(GATED)),
    ("gateshift approve <摘要>", Expected("")),
    ("gateshift verify -f params/shop.yaml", Expected("")),
    ("gateshift canary -f params/production.yaml -p mode=plan", Expected("digest")),
    ("gateshift canary -f params/production.yaml -p mode=plan --json", Expected('"digest"')),
    (_PLAN, Expected("")),
    ("DIGEST=$(tail -n 1 result.txt | jq -r .digest)", Expected("")),
    (
        'gateshift canary -f params/production.yaml --act --approve "$DIGEST" -p approver="$USER" --json',
        Expected('"exit_code": 0'),
    ),
    (_PLAN, Expected("")),
    ("DIGEST=$(tail -n 1 result.txt | jq -r .digest)", Expected("")),
    (_BY_PAPERMILL, Expected("")),
    ("gateshift diagnose -f params/production.yaml", Expected("")),
    ("gateshift diagnose -p symptom=404 -p host=api.example.com -p path=/v1/cart", Expected("")),
    ("gateshift diagnose -p symptom=404 -p host=api.example.com -p path=/v1/cart -p rule=cart", Expected("")),
    ("gateshift diagnose -p symptom=lint", Expected("")),
    ('gateshift rollback -f params/production.yaml --act -p reason="what you see"', Expected(GATED)),
    ("gateshift approve -f params/production.yaml DIGEST", Expected("")),
    ("gateshift shift --restore --act", Expected(GATED)),
    ("gateshift approve DIGEST", Expected("")),
    ("gateshift report", Expected("")),
    ("gateshift report -f params/shop.yaml", Expected("")),
    ("gateshift report -f params/production.yaml", Expected("")),
    ("gateshift notify -f params/production.yaml", Expected("")),
    ('grep -rF "$APISIX_ADMIN_KEY" outputs/', Expected("", 1)),
    ("gateshift lab down", Expected("")),
)

# Executed elsewhere: by which test (a file of the repository), and why not here.
_SOAK = ("tests/cluster/test_soak_record.py", "it needs a stable run of days behind it")
_CLEAN = ("tests/cluster/test_cluster_cleanup.py", "it needs a stable run of days behind it")
_GATE = ("tests/docs/test_story_on_lab.py", "the story runs it with -f and -p in addition")
ELSEWHERE: dict[str, tuple[str, str]] = {
    "make install": ("deploy/install.sh", "the Makefile's own step: without it no test runs"),
    "make install PYTHON=/path/to/python3.12": ("deploy/install.sh", "the same with another Python"),
    "make test": ("Makefile", "it runs these tests"),
    "make check": ("Makefile", "it runs these tests"),
    "make rehearse": ("Makefile", "`make test` runs its short form"),
    "gateshift rehearse": ("Makefile", "`make test` runs its short form"),
    "gateshift rehearse --short --output gateway-api": (
        "tests/lab/test_gateway_api_lab.py",
        "minutes; there the same definitions, objects and gateways are compared on the lab",
    ),
    "gateshift lab up --gateway-api": ("tests/lab/test_gateway_api_lab.py", "its lab is prepared so"),
    "gateshift open --lab": ("tests/browser/test_operator.py", "opened in a real browser"),
    "gateshift open --no-browser": ("tests/browser/test_operator.py", "opened in a real browser"),
    "gateshift soak -f params/shop.yaml --act": _SOAK,
    "gateshift cleanup -f params/shop.yaml --act -p confirm_namespace=apisix": _CLEAN,
    "gateshift cleanup -p undo=true --act": _CLEAN,
    "gateshift cleanup -p strict_mtls=true --act": (
        "tests/cluster/test_cluster_strict.py",
        "as the clean-up",
    ),
    "gateshift apply -p undo=true --act": ("tests/cluster/test_cluster_apply.py", "it would end the story"),
    "gateshift canary -f params/shop.yaml --act": _GATE,
    "gateshift canary -f params/production.yaml --act": _GATE,
    "gateshift rollback -f params/production.yaml --act": _GATE,
    "gateshift rollback --act": _GATE,
    "papermill --engine gateshift": _GATE,
    "gateshift open -f FILE": ("tests/browser/test_operator.py", "opened in a real browser"),
    "gateshift open canary": ("tests/browser/test_operator.py", "opened in a real browser"),
    "kubectl apply -f deploy/cronjob.yaml": (
        "tests/browser/test_actions.py",
        "a strict dry run: the lab has no nodes that would run it",
    ),
    "kubectl get ns kube-system -o jsonpath='{.metadata.uid}'": ("params/lab.yaml", "kubectl's own command"),
    "gateshift audit copy --bucket BUCKET outputs/sample/*": (
        "tests/archive/test_keeping.py",
        "it needs S3; the test has moto's",
    ),
}


def plain(command: str) -> str:
    """Return *command* as it is typed, without its prompt, comment and path of the environment."""
    text = re.sub(r"\s+#\s.*$", "", command.strip().removeprefix("$ ").strip())
    return re.sub(r"\s+", " ", text.replace(".venv/bin/", ""))


def shown(page: Path) -> Iterator[str]:
    """Yield each command that *page* tells its reader to type."""
    text = page.read_text(encoding="utf-8")
    for block in _FENCE.findall(text):
        for line in block.splitlines():
            if line.startswith("$ "):
                yield plain(line)
    for command in _INLINE.findall(text):
        if page == _WHOLE or re.search(r"\s-{1,2}\w", command):
            yield plain(command)


def named(page: Path) -> Iterator[str]:
    """Yield every mention of a command of gateshift in *page*, with or without options."""
    yield from (plain(c) for c in _INLINE.findall(page.read_text(encoding="utf-8")))
    yield from (c for c in shown(page) if c.startswith("gateshift"))


def workspace(target: Path, outputs: Path | None = ROOT / "outputs" / "sample") -> None:
    """Lay a clone as a reader has it at *target*, with the installed environment in place of a new one."""
    for name in ("notebooks", "params"):
        shutil.copytree(ROOT / name, target / name)
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy2(ROOT / name, target / name)
    for name in (".venv", "lib", "deploy"):
        (target / name).symlink_to(ROOT / name)
    if outputs:
        shutil.copytree(outputs, target / "outputs" / "sample")
    data = yaml.safe_load((ROOT / "params/production.yaml").read_text(encoding="utf-8"))
    data["stages"][0]["dwell"] = "soon"
    (target / "wrong.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
