"""The table of faults in docs/dns.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_documented_fault_has_its_test() -> None:
    page = (ROOT / "docs" / "dns.md").read_text(encoding="utf-8")
    rows = page.partition("| fault | what happens | test |")[2].partition("\n\n")[0].splitlines()[2:]
    named = [re.findall(r"`(test_\w+)`", row) for row in rows]
    assert len(rows) >= 12
    assert all(len(names) == 1 for names in named), rows
    sources = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")]
    for (name,) in named:
        assert any(f"def {name}(" in source for source in sources), name
