"""APISIX in, Istio out: objects, a ledger of every source value, and a proof of the routing."""

from gateshift.translate.engine import translate
from gateshift.translate.model import Blocker, Fidelity, LedgerEntry, Target, Translation
from gateshift.translate.proof import Disagreement, Proof, prove
from gateshift.translate.report import write_translation

__all__ = [
    "Blocker",
    "Disagreement",
    "Fidelity",
    "LedgerEntry",
    "Proof",
    "Target",
    "Translation",
    "prove",
    "translate",
    "write_translation",
]
