"""One check: what was measured, why it matters, what to do; and how many run side by side in bounded time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from gateshift.errors import GateshiftError

__all__ = ["Check", "Item", "Status", "failed", "passed", "run_items", "warned"]


class Status(StrEnum):
    """``fail`` holds the migration, ``warn`` wants a look, ``pass`` is fine."""

    PASS = "pass"  # noqa: S105 - a result, not a password
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check. ``remedy`` is empty when nothing is to be done."""

    name: str
    status: Status
    measured: str
    why: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to check: *look* returns its outcomes; *why* explains a failure of looking itself."""

    name: str
    why: str
    look: Callable[[], Iterable[Check]]


def passed(name: str, measured: str, why: str) -> Check:
    """Return a passed check."""
    return Check(name, Status.PASS, measured, why)


def warned(name: str, measured: str, why: str, remedy: str) -> Check:
    """Return a check that wants a look."""
    return Check(name, Status.WARN, measured, why, remedy)


def failed(name: str, measured: str, why: str, remedy: str) -> Check:
    """Return a check that holds the migration."""
    return Check(name, Status.FAIL, measured, why, remedy)


def _outcome(item: Item) -> tuple[Check, ...]:
    try:
        found = tuple(item.look())
    except GateshiftError as error:
        return (failed(item.name, str(error), item.why, error.hint),)
    except Exception as error:  # noqa: BLE001 - one broken check must not hide the other results
        return (
            failed(
                item.name,
                f"the check itself broke: {type(error).__name__}: {error}",
                item.why,
                "report this as a defect of gateshift; what it measures is unknown",
            ),
        )
    # Silence is not a pass: a check that finds nothing to look at has to say so itself.
    return found or (failed(item.name, "nothing was measured", item.why, "look at this by hand"),)


def run_items(
    items: Sequence[Item], *, limit: float, progress: Callable[[str], None] | None = None
) -> tuple[Check, ...]:
    """Run all items side by side; after *limit* seconds those without an answer count as failed.

    The order of the results is the order of *items*. The threads are daemons: a check that hangs in a
    system call cannot keep the run alive.
    """
    say = progress or (lambda _: None)
    outcomes: dict[int, tuple[Check, ...]] = {}
    changed = threading.Condition()

    def work(index: int) -> None:
        found = _outcome(items[index])
        with changed:
            outcomes[index] = found
            changed.notify_all()

    for index in range(len(items)):
        threading.Thread(target=work, args=(index,), daemon=True).start()
    deadline = time.monotonic() + limit
    told: set[int] = set()
    with changed:
        while len(outcomes) < len(items) and (left := deadline - time.monotonic()) > 0:
            changed.wait(min(left, 0.5))
            for index in sorted(set(outcomes) - told):
                told.add(index)
                worst = max((c.status for c in outcomes[index]), key=list(Status).index)
                say(f"[{len(told)}/{len(items)}] {items[index].name}: {worst}")
        done = dict(outcomes)
    out: list[Check] = []
    for index, item in enumerate(items):
        late = failed(
            item.name,
            f"no answer within {limit:g} s",
            item.why,
            "see whether the system it asks is overloaded or unreachable, then repeat",
        )
        out += done.get(index, (late,))
    return tuple(out)
