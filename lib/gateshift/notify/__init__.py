"""Tell people what happened, by whatever service they use; never twice, never a secret, never in the way."""

from gateshift.notify.events import Event, event_of, problem, waiting
from gateshift.notify.sender import Notifier

__all__ = ["Event", "Notifier", "event_of", "problem", "waiting"]
