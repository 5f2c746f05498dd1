"""The rollback's line about the root cause: short enough for a card, each cause once."""

from __future__ import annotations

from gateshift.diagnose.model import Cause, Level
from gateshift.runbook.rollback import _told
from gateshift.words import gloss


def test_one_cause_at_several_services_is_named_once_with_what_was_seen_at_each() -> None:
    title = "the backend itself answers 503"
    causes = [
        Cause(Level.ERROR, title, f"{n} of the last 986 requests", "x", symptom="503", confidence=0.9)
        for n in (21, 15, 8)
    ]
    other = Cause(Level.ERROR, "the new gateway is slow", "P95 900 ms", "x", symptom="latency")
    info = Cause(Level.INFO, "a note", "nothing", "x", symptom="503")
    said = _told((*causes, other, info))
    assert said.count(title) == said.count("symptom=503") == 1
    seen = "; ".join(f"{n} of the last 986 requests" for n in (21, 15, 8))
    assert said.startswith(f"likely {title} ({seen}; 90_troubleshoot with symptom=503, ")
    assert "; or the new gateway is slow (P95 900 ms; 90_troubleshoot with symptom=latency, " in said
    assert "a note" not in said
    assert gloss(said) == said  # English is what is archived
