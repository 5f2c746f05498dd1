"""What a diagnosis is made of: facts read once, probes that judge them, causes they name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from gateshift.cluster.objects import Object

if TYPE_CHECKING:
    from gateshift.diagnose.facts import Facts

__all__ = ["Cause", "Level", "Probe", "filled", "labels_of", "mappings_in"]


class Level(StrEnum):
    """``error`` explains the symptom, ``warning`` may, ``info`` says what could not be asked."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Cause:
    """One cause found.

    ``code`` names its kind (a key of :data:`gateshift.diagnose.causes.KNOWN`), ``confidence`` is 0-1,
    ``remedy`` a command, a diff or one sentence, ``equivalent`` how to see the evidence by hand,
    ``reference`` the document that explains it. ``shown`` is the title in the language in use, empty for
    English: it is for people only and never archived.
    """

    level: Level
    title: str
    evidence: str
    remedy: str
    equivalent: str = ""
    confidence: float = 0.5
    reference: str = ""
    symptom: str = ""
    code: str = ""
    shown: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the cause as plain JSON, as the archive keeps it: in English, whatever is shown."""
        kept = {**asdict(self), "level": str(self.level)}
        del kept["shown"]
        return kept


@dataclass(frozen=True, slots=True)
class Probe:
    """One question of the trees named in *symptoms*; *look* returns causes, nothing when all is well.

    Probes are declared by likelihood and, where that is alike, by cost: it breaks ties of confidence.
    """

    name: str
    symptoms: frozenset[str]
    equivalent: str
    look: Callable[[Facts], Iterable[Cause]]


def mappings_in(value: object) -> Iterator[Mapping[str, Any]]:
    """Yield every mapping in a JSON value, itself included."""
    if isinstance(value, Mapping):
        yield value
        for one in value.values():
            yield from mappings_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from mappings_in(one)


def filled(obj: Object) -> Object:
    """Add the parts that an object may leave out and a probe reads."""
    metadata = {"namespace": "", **(obj.get("metadata") or {})}
    return {**obj, "metadata": metadata, "spec": obj.get("spec") or {}, "status": obj.get("status") or {}}


def labels_of(obj: Object) -> dict[str, str]:
    """Return an object's labels."""
    return dict(obj["metadata"].get("labels") or {})
