"""How users find a gateway: caching resolvers in front of Route 53, and connections that stay open.

The model: many users, each behind a resolver of its own. A resolver keeps an answer for its TTL (a *stale*
one for a multiple of it) and then draws a new one by the weights in force. A user with an open connection
does not ask at all until the connection's age is over. So a change of weights reaches users late and
gradually, as in production, and independently of how often each user calls.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Answer", "Answers", "Population", "User", "read_answers"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One possible answer: a load balancer's name and its weight."""

    target: str
    weight: float


Answers = Mapping[str, Sequence[Answer]]
"""By host, as Route 53 would answer now."""


def read_answers(data: Mapping[str, Any]) -> dict[str, tuple[Answer, ...]]:
    """Read the lab's Route 53 answers (``GET /lab/answers``)."""
    return {
        host: tuple(Answer(str(a["target"]), float(a["weight"])) for a in entry["answers"])
        for host, entry in data.items()
    }


@dataclass(slots=True)
class User:
    """One user. Times are monotonic seconds."""

    stale: bool
    cached: dict[str, tuple[str, float]] = field(default_factory=dict)
    connected: dict[str, tuple[str, float]] = field(default_factory=dict)


class Population:
    """All users, and the clockwork of their caches."""

    def __init__(
        self,
        *,
        size: int,
        ttl: float,
        stale_share: float,
        stale_factor: float,
        connection_age: float,
        seed: int = 0,
    ) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a rehearsal wants repeatable traffic
        self.ttl = ttl
        self.stale_factor = stale_factor
        self.connection_age = connection_age
        self.answers: Answers = {}
        stale = round(size * stale_share)
        self.users = [User(stale=i < stale) for i in range(size)]

    def set_ttl(self, ttl: float) -> None:
        """Change how many seconds resolvers keep the answers they draw from now on."""
        if not 0 < ttl <= 86400:
            raise ValueError(f"ttl is from 0 to 86400 seconds, not {ttl:g}")
        self.ttl = ttl

    def pick(self) -> User:
        """A user, at random."""
        return self.users[int(self.random.random() * len(self.users))]

    def target(self, user: User, host: str, now: float) -> str | None:
        """The load balancer this user talks to now; None while the name has no answer at all."""
        connected = user.connected.get(host)
        if connected is not None and connected[1] > now:
            return connected[0]
        answer = self._resolve(user, host, now)
        if answer is not None and self.connection_age > 0:
            user.connected[host] = (answer, now + self.connection_age * self.random.uniform(0.5, 1.0))
        return answer

    def disconnect(self, user: User, host: str) -> None:
        """Forget the user's open connection, as after an error: the next call asks the resolver."""
        user.connected.pop(host, None)

    def _resolve(self, user: User, host: str, now: float) -> str | None:
        cached = user.cached.get(host)
        if cached is not None and cached[1] > now:
            return cached[0]
        choices = self.answers.get(host)
        if not choices:
            return cached[0] if cached else None  # resolvers serve stale answers when there are none
        chosen = self.random.choices(choices, [one.weight for one in choices])[0].target
        life = self.ttl * (self.stale_factor if user.stale else 1.0)
        if cached is None:
            life *= self.random.random()  # caches were filled at different moments before we look
        user.cached[host] = (chosen, now + life)
        return chosen
