"""Every error gateshift raises on purpose.

::

    GateshiftError                       exit 1
    ├── InputError                       exit 2   something a person wrote is wrong; nothing was touched
    │   ├── ParamsError                  exit 2   a params file or a -p override
    │   └── ConfigurationError           exit 2   an APISIX configuration (file and path are named)
    ├── Held                             exit 3   not wrong, but it may not go on by itself
    │   ├── GateClosed                   exit 3   a plan waits for a person's approval
    │   ├── Blocked                      exit 3   a blocker (security plugin, failed check) needs a decision
    │   ├── NotEnoughEvidence            exit 3   data missing, stale, empty or too little to judge
    │   └── LockHeld                     exit 3   another migration or operator is at work
    │       └── LockInDoubt              exit 3   whether the lock is still ours cannot be known now
    ├── RolledBack                       exit 4   traffic was brought back; the migration is not done
    ├── Interrupted                      exit 5   stopped from outside; resume is possible
    ├── JournalError                     exit 1   the journal is damaged or an illegal transition was asked
    │   └── Unwritable                   exit 1   the disk does not take what must be on record
    └── ExternalError                    exit 1   a system we depend on failed
        ├── ClusterError                 exit 1   Kubernetes API or istioctl
        ├── ApisixError                  exit 1   APISIX Admin API
        ├── TrafficError                 exit 1   DNS provider or traffic-split
        ├── MetricsError                 exit 1   Prometheus
        └── LabError                     exit 1   a part of the rehearsal lab

Each carries a ``hint``: the next step, as a command or a file to edit. Clients' own exceptions never
leave the room that uses the client; they are wrapped here, so a client library stays replaceable.
"""

from __future__ import annotations

__all__ = [
    "ApisixError",
    "Blocked",
    "ClusterError",
    "ConfigurationError",
    "ExternalError",
    "GateClosed",
    "GateshiftError",
    "Held",
    "InputError",
    "Interrupted",
    "JournalError",
    "LabError",
    "LockHeld",
    "LockInDoubt",
    "MetricsError",
    "NotEnoughEvidence",
    "ParamsError",
    "RolledBack",
    "TrafficError",
    "Unwritable",
]


class GateshiftError(Exception):
    """Root of the tree. ``str(error)`` is one clear sentence; ``hint`` names the next step."""

    exit_code: int = 1
    default_hint: str = "run `gateshift diagnose` and look at the last archived notebook"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint or self.default_hint


class InputError(GateshiftError):
    """Something a person wrote is wrong. Raised before anything is touched."""

    exit_code = 2
    default_hint = "correct the input and run the same command again; nothing was changed"


class ParamsError(InputError):
    """A params file or override is wrong; names file, key and remedy."""

    default_hint = (
        "correct the params file, or the value given for it with the command; `params/production.yaml` "
        "shows how, `make docs` builds a page of all keys"
    )


class ConfigurationError(InputError):
    """An APISIX configuration cannot be read as it stands; names file and path inside it."""

    default_hint = "correct the APISIX configuration at the place named, or export it again"


class Held(GateshiftError):  # noqa: N818 - an outcome, not a failure
    """Nothing is wrong with the command, but it may not go on by itself."""

    exit_code = 3
    default_hint = "read the reason, decide, and run the same notebook again"


class GateClosed(Held):
    """A plan was shown and waits for approval of its digest."""

    default_hint = "read the plan above, then run again with `-p approve=<digest>`"


class Blocked(Held):
    """A blocker stands: an untranslatable security plugin or a failed check."""


class NotEnoughEvidence(Held):
    """Data are missing, stale, empty or too few to judge; the message says which."""

    default_hint = "see `gateshift diagnose -p symptom=no-metrics`, or wait for more traffic"


class LockHeld(Held):
    """Another operator or job holds the migration's lock."""

    default_hint = "`gateshift status` shows the holder; wait for it to finish or to expire"


class LockInDoubt(LockHeld):
    """The lock was ours and could not be renewed in time. A rollback goes on, anything else waits."""

    default_hint = "make the cluster's API reachable, then run the same notebook again: it resumes"


class RolledBack(GateshiftError):  # noqa: N818 - an outcome, not a failure
    """Traffic was brought back to APISIX."""

    exit_code = 4
    default_hint = "read the rollback notebook in the archive; fix the cause, then start a new attempt"


class Interrupted(GateshiftError):  # noqa: N818 - an outcome, not a failure
    """Stopped from outside (SIGTERM, Ctrl-C, kernel death)."""

    exit_code = 5
    default_hint = "run the same notebook again: it resumes from the journal"


class JournalError(GateshiftError):
    """The journal is damaged, or a transition was asked that the state machine forbids."""

    default_hint = "`gateshift audit verify` names the damaged record; never edit a journal by hand"


class Unwritable(JournalError):  # noqa: N818 - the word for it
    """The disk is full, read-only or broken, so what must be on record first was not done."""

    default_hint = "free disk space or correct the permissions; nothing was done that is not in the journal"

    @classmethod
    def of(cls, path: object, error: OSError) -> Unwritable:
        """Return the error of *path*, which could not be written because of *error*."""
        return cls(f"{path}: cannot be written: {error.strerror or error}")


class ExternalError(GateshiftError):
    """A system gateshift depends on failed or did not answer in time."""


class ClusterError(ExternalError):
    """The Kubernetes API or istioctl failed."""

    default_hint = "check the kubeconfig context and permissions: `gateshift preflight`"


class ApisixError(ExternalError):
    """The APISIX Admin API failed."""

    default_hint = "check the Admin API address and key: `gateshift preflight`"


class TrafficError(ExternalError):
    """The DNS provider or another traffic mechanism failed."""

    default_hint = "the weights before the change are in the journal; `gateshift rollback` restores them"


class MetricsError(ExternalError):
    """Prometheus failed, refused the query or did not answer in time."""

    default_hint = "see `gateshift diagnose -p symptom=no-metrics`"


class LabError(ExternalError):
    """A part of the rehearsal lab failed; the message carries its last log lines."""

    default_hint = "`gateshift lab down`, then `gateshift lab up`; logs are listed by `gateshift lab status`"
