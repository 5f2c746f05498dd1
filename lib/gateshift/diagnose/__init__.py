"""From symptom to cause: read-only probes with evidence, time limits and what to type by hand."""

from gateshift.diagnose.engine import SYMPTOMS, explain_rollback, run, symptom_of
from gateshift.diagnose.facts import WINDOW
from gateshift.diagnose.model import Cause, Level
from gateshift.diagnose.present import archived, sentence, table

__all__ = [
    "SYMPTOMS",
    "WINDOW",
    "Cause",
    "Level",
    "archived",
    "explain_rollback",
    "run",
    "sentence",
    "symptom_of",
    "table",
]
