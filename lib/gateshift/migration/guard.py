"""What a run must hold to change anything: this machine's lock, the cluster's Lease and the right journal.

The Lease carries the head of each migration's journal as annotation ``head.gateshift.dev/<migration>``. A run
whose journal does not contain that head works on another copy of the archive, an older or a forged one. A
migration that has users on Istio keeps every other migration out, also between two runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from gateshift.errors import LockHeld
from gateshift.migration.journal import Journal, Lock
from gateshift.migration.records import Record
from gateshift.migration.state import State
from gateshift.plan import parse_json

__all__ = [
    "ANCHOR",
    "LEASE",
    "Anchor",
    "Guard",
    "Refusal",
    "anchor_of",
    "anchors",
    "annotations_of",
    "refusal",
]

ANCHOR = "head.gateshift.dev/"
"""Prefix of the annotations; the name part is the migration's."""

LEASE = ("kube-system", "gateshift")
"""Namespace and name of the Lease."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """Where a migration's journal stood: number and hash of a record, its phase, percent on Istio."""

    seq: int
    hash: str
    phase: str
    weight: int
    rolling_back: bool = False

    @property
    def users_on_istio(self) -> bool:
        """True while another migration must not begin: users are between the gateways."""
        return (self.weight > 0 or self.rolling_back) and self.phase != "cleaned"

    def text(self) -> str:
        """Return the annotation's value."""
        return json.dumps(asdict(self), sort_keys=True)


def anchor_of(last: Record | None, state: State) -> Anchor | None:
    """Return the anchor of a journal with this newest record; None while it is empty."""
    if last is None:
        return None
    # A shift under way counts with the greater weight: users may be there already.
    weight = max(state.possible_weights)
    return Anchor(last.seq, last.hash, state.phase.value, weight, state.rolling_back)


def anchors(annotations: Mapping[str, str]) -> dict[str, Anchor]:
    """Read the anchors among a Lease's *annotations*; what is none of ours, or damaged, is left out."""
    found = {}
    for key, text in annotations.items():
        if not key.startswith(ANCHOR):
            continue
        try:
            found[key.removeprefix(ANCHOR)] = Anchor(**parse_json(text))
        except (TypeError, ValueError):
            continue
    return found


class Refusal(NamedTuple):
    """Why a migration may not act, and what to do: sentences for the operator."""

    why: str
    hint: str


def refusal(found: Mapping[str, Anchor], migration: str, records: Sequence[Record]) -> Refusal | None:
    """Say why *migration* with this journal may not act; None when it may."""
    own = found.get(migration)
    give_up = f"kubectl -n kube-system annotate lease gateshift {ANCHOR}"
    if own is not None and not (own.seq <= len(records) and records[own.seq - 1].hash == own.hash):
        why = (
            f"the cluster knows record {own.seq} of migration {migration}, which this journal does not have: "
            "it is another copy of the archive, an older one, or was replaced"
        )
        return Refusal(
            why,
            hint="work in the outputs folder of the earlier runs, or restore it; "
            f"to give it up: {give_up}{migration}-",
        )
    for name, other in found.items():
        if name != migration and other.users_on_istio:
            why = (
                f"migration {name} is being rolled back: one migration at a time"
                if other.rolling_back
                else f"migration {name} has {other.weight} % on Istio: one migration at a time"
            )
            return Refusal(
                why,
                hint=f"finish {name} or roll it back; if it is surely over: {give_up}{name}-",
            )
    return None


class Guard:
    """The locks of one run as the journal's one lock; every write asks them first."""

    def __init__(self, local: Lock, lease: Lock | None) -> None:
        self.local, self.lease = local, lease

    @property
    def holder(self) -> str:
        """Who holds them."""
        return self.local.holder

    def check(self) -> None:
        """Raise :class:`~gateshift.errors.LockHeld` when one of them is lost or in doubt."""
        self.local.check()
        if self.lease is not None:
            try:
                self.lease.check()
            except LockHeld as error:
                raise type(error)(f"cluster: {error}", hint=error.hint) from None


def annotations_of(journal: Journal, migration: str) -> dict[str, str]:
    """Return what a renewal of the Lease publishes."""
    anchor = anchor_of(*journal.known)
    return {} if anchor is None else {f"{ANCHOR}{migration}": anchor.text()}
