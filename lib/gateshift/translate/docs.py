"""Writes ``docs/plugins.md``: all 126 plugins of APISIX 3.18 and what becomes of them, from the code."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from gateshift.translate.plugins.registry import Fact, facts, handled

__all__ = ["plugins_page", "write_plugins_page"]

_HEAD = """# Plugins

Every plugin of APISIX 3.18 and what `gateshift translate` does with it. This page is made from the code
(`python -m gateshift.translate.docs docs/plugins.md`); do not edit it.

*Fidelity* is how well the plugin maps at best; the ledger of a translation says it for each option. *If
dropped* is what would be lost. *Handling*: `converted` has a rule; `blocks` holds its routes back until a
person signs under `translate.accept`; `reported` is named in the ledger and changes nothing else.

A security or billing plugin that is converted, but not exactly, waits for a signature too: the blocker names
what differs. `resource: "*"` with `covers` signs that difference wherever the plugin is used, never a loss.
`tests/lab/test_plugins_on_envoy.py` checks the rules on a real Envoy that a real istiod configures.

| plugin | priority | category | fidelity | if dropped | handling | rule |
|---|---:|---|---|---|---|---|
"""


def _handling(fact: Fact) -> tuple[str, str]:
    rule = handled().get(fact.name)
    if rule is not None:
        doc = inspect.getdoc(rule) or ""
        return "converted", doc.split("\n", 1)[0]
    if fact.guards_access_or_money or fact.category == "ai" or fact.risk == "behaviour":
        return "blocks", ""
    return "reported", ""


def plugins_page() -> str:
    """Return the page's Markdown."""
    rows = []
    for fact in sorted(facts().values(), key=lambda one: (-one.priority, one.name)):
        handling, text = _handling(fact)
        cells = (fact.name, str(fact.priority), fact.category, fact.fidelity, fact.risk, handling, text)
        rows.append("| " + " | ".join(cells) + " |\n")
    return _HEAD + "".join(rows)


def write_plugins_page(path: str | Path) -> Path:
    """Write the page to *path*."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(plugins_page(), encoding="utf-8")
    return target


if __name__ == "__main__":
    sys.stdout.write(f"{write_plugins_page(sys.argv[1])}\n")
