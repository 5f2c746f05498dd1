"""From symptom to cause: read-only probes with evidence, time limits and what to type by hand."""

from gateshift.diagnose.engine import SYMPTOMS, run
from gateshift.diagnose.model import Cause, Level

__all__ = ["SYMPTOMS", "Cause", "Level", "run"]
