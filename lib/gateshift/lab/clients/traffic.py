"""The traffic itself: arrivals, choice of user and call, and the loop that keeps answers fresh."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path

import aiohttp

from gateshift.lab.clients.dns import Population, User, read_answers
from gateshift.lab.clients.mix import MIX, Call, Protocol, Token
from gateshift.lab.clients.stats import Outcome, Stats
from gateshift.lab.clients.wire import Address, Pool
from gateshift.lab.oldgateway import material

__all__ = ["Traffic"]

_IN_FLIGHT = 2000
_POLL = 0.25
_TOKEN_LIFE = 3600.0


class Traffic:
    """Poisson arrivals at a rate that may change at any time."""

    def __init__(
        self,
        population: Population,
        *,
        rate: float,
        https_share: float,
        keys: Path,
        route53: str,
        addresses: Mapping[str, Address],
        ca_file: Path | None,
        connection_age: float,
    ) -> None:
        self.population = population
        self.rate = rate
        self.paused = False
        self.stats = Stats()
        self._https_share = https_share
        self._route53 = route53.rstrip("/")
        self._ca_file = ca_file
        self._age = max(connection_age, 5.0)
        self._pools = {name: Pool(one, ca_file, self._age) for name, one in addresses.items()}
        self._keys = keys
        self._tokens: dict[Token, str] = {}
        self._signed = 0.0
        self._cumulative = list(accumulate(one.weight for one in MIX))
        self._calls: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    # -- control

    def set_rate(self, rate: float) -> None:
        """Change the rate (requests a second); 0 stops arrivals."""
        if not 0 <= rate <= 5000:
            raise ValueError(f"rate is from 0 to 5000 requests a second, not {rate}")
        self.rate = rate
        self._changed.set()

    def set_paused(self, paused: bool) -> None:
        """Stop or go on."""
        self.paused = paused
        self._changed.set()

    def learn(self, address: Address) -> None:
        """Add or move a load balancer."""
        self._pools[address.name] = Pool(address, self._ca_file, self._age)

    # -- loops

    async def poll(self) -> None:
        """Keep the authoritative answers fresh; while Route 53 is away the last ones hold."""
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError, KeyError):
                    async with session.get(f"{self._route53}/lab/answers") as answer:
                        self.population.answers = read_answers(await answer.json())
                await asyncio.sleep(_POLL)

    async def first_answers(self, patience: float = 5.0) -> None:
        """Wait for the first answers, so that no call is lost to an empty cache (not for ever)."""
        ends = time.monotonic() + patience
        while not self.population.answers and time.monotonic() < ends:
            await asyncio.sleep(0.02)

    async def arrive(self) -> None:
        """Start calls at Poisson times."""
        due = time.monotonic()
        while True:
            if self.paused or self.rate <= 0:
                self._changed.clear()
                await self._changed.wait()
                due = time.monotonic()
                continue
            due += self.population.random.expovariate(self.rate)
            wait = due - time.monotonic()
            if wait > 0:
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), wait)
                    due = time.monotonic()  # the rate changed while we waited
                    continue
            elif wait < -1.0:
                due = time.monotonic()  # the machine was away: do not catch up with a burst
            self._start()

    async def close(self) -> None:
        """End calls and connections."""
        for task in list(self._calls):
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        for pool in self._pools.values():
            await pool.close()

    # -- one call

    def _start(self) -> None:
        if len(self._calls) >= _IN_FLIGHT:
            self.stats.dropped += 1
            return
        population = self.population
        call = population.random.choices(MIX, cum_weights=self._cumulative)[0]
        user = population.pick()
        target = population.target(user, call.host, time.monotonic())
        pool = self._pools.get(target) if target else None
        if pool is None:
            self.stats.unresolved += 1
            return
        task = asyncio.get_running_loop().create_task(self._run(pool, user, call))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _run(self, pool: Pool, user: User, call: Call) -> None:
        source = self.population.random
        path = call.path.replace("{n}", str(source.randrange(1000, 9999)))
        headers = {"Host": call.host, "User-Agent": "voiceassistant-lab/1.0", **call.headers}
        token = self._token(call.token)
        if token:
            headers["Authorization"] = f"Bearer {token}"
        tls = source.random() < self._https_share
        outcome: Outcome
        if call.protocol is Protocol.WEBSOCKET:
            outcome = await pool.websocket(call, path, headers, tls, source.uniform(0.2, 1.0))
        elif call.protocol is Protocol.GRPC:
            outcome = await pool.grpc(call, path, headers, tls)
        else:
            outcome = await pool.http(call, path, headers, tls)
        if outcome.status is None:
            self.population.disconnect(user, call.host)
        self.stats.record(pool.address.gateway, call, outcome)

    def _token(self, kind: Token) -> str:
        if kind is Token.NONE:
            return ""
        now = time.time()
        if now - self._signed > _TOKEN_LIFE / 2:
            self._tokens = {
                one: material.token(self._keys, one.value, life=_TOKEN_LIFE)
                for one in (Token.WEB, Token.MOBILE)
            }
            head, body, _ = self._tokens[Token.WEB].split(".")
            # A real header and payload under somebody else's signature.
            self._tokens[Token.FORGED] = ".".join((head, body, self._tokens[Token.MOBILE].split(".")[2]))
            self._signed = now
        return self._tokens[kind]
