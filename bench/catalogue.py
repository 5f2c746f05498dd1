"""What a fault of the catalogue is: how it is injected, what a client sees of it, and what must be found."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from bench.scene import Answer, Scene

__all__ = ["CATALOGUE", "Fault", "fault", "is_code", "unreachable"]

Inject = Callable[[Scene], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Fault:
    """One fault. *codes* are the causes of which one must rank first; *ask* is a client's request.

    *shown* judges a client's answer; *load* is how many clients ask at once while it is diagnosed;
    *replaced* says what of the fault could not be had and what stands for it; *settle* is seconds of load
    before the diagnosis.
    """

    name: str
    symptom: str
    codes: frozenset[str]
    inject: Inject
    ask: Callable[[Scene], Answer]
    shown: Callable[[Answer], bool]
    host: str = ""
    path: str = ""
    rule: str = ""
    load: int = 2
    settle: float = 1.6
    replaced: str = ""
    slow: bool = False
    short: bool = False
    options: dict[str, Any] = field(default_factory=dict)


CATALOGUE: list[Fault] = []


def fault(
    symptom: str,
    name: str,
    codes: set[str],
    ask: Callable[[Scene], Answer],
    shown: Callable[[Answer], bool],
    **more: Any,
) -> Callable[[Inject], Inject]:
    """Register the decorated function as the injection of a fault."""

    def register(inject: Inject) -> Inject:
        CATALOGUE.append(Fault(name, symptom, frozenset(codes), inject, ask, shown, **more))
        return inject

    return register


def unreachable(answer: Answer) -> bool:
    """A client got no HTTP answer."""
    return answer.code == 0


def is_code(*codes: int) -> Callable[[Answer], bool]:
    """A client got one of *codes*."""
    return lambda answer: answer.code in codes
