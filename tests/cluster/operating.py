"""What the lab's tests of operating a cluster share: a lab of their own, a route, users who go on asking."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from gateshift import lab
from gateshift.cluster.client import Cluster, ConflictError
from gateshift.lab.state import LabState

PARAMS = Path(__file__).parents[2] / "params" / "lab.yaml"
SHOP = "voiceassistant-prod"
GATEWAY = "istio-ingressgateway"


@contextmanager
def own_lab(name: str, state_home: Path) -> Iterator[LabState]:
    """A lab of our own in a state folder of its own, or the one named by GATESHIFT_TEST_LAB."""
    before = {k: os.environ.get(k) for k in ("XDG_STATE_HOME", "GATESHIFT_LAB")}
    if named := os.environ.get("GATESHIFT_TEST_LAB"):
        os.environ["GATESHIFT_LAB"] = named
        yield lab.status(named)
    else:
        os.environ |= {"XDG_STATE_HOME": str(state_home), "GATESHIFT_LAB": name}
        try:
            yield lab.up(name, rate=0)
        finally:
            lab.down(name)
    for key, value in before.items():
        os.environ.pop(key, None)
        if value is not None:
            os.environ[key] = value


def until(what: Callable[[], object], seconds: float = 240.0) -> bool:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def item(version: str, kind: str, name: str, namespace: str = "", **body: Any) -> dict[str, Any]:
    """An object as it is written into a file."""
    metadata = {"name": name, **({"namespace": namespace} if namespace else {}), **body.pop("metadata", {})}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **body}


def _kind(obj: Mapping[str, Any]) -> str:
    return f"{obj['apiVersion']}/{obj['kind']}"


@contextmanager
def added(admin: Cluster, *objects: dict[str, Any]) -> Iterator[None]:
    """Objects that exist while the block runs, and are gone again after it."""
    made = []
    try:
        for one in objects:
            admin.create(one)
            made.append((_kind(one), one["metadata"]["name"], one["metadata"].get("namespace")))
        yield
    finally:
        for place in reversed(made):
            admin.delete(*place)
            assert until(partial(_gone, admin, *place), 30), place


def _gone(admin: Cluster, kind: str, name: str, namespace: str | None) -> bool:
    return not admin.serves(kind) or admin.get(kind, name, namespace) is None


@contextmanager
def altered(
    admin: Cluster, kind: str, name: str, namespace: str | None, change: Callable[[dict[str, Any]], object]
) -> Iterator[None]:
    """An object that is another while the block runs."""
    before = admin.get(kind, name, namespace)
    assert before, name
    _write(admin, kind, name, namespace, change)
    try:
        yield
    finally:

        def back(live: dict[str, Any]) -> None:
            for part in {*before, *live} - {"metadata", "status", "apiVersion", "kind"}:
                live.pop(part, None)
                live |= {part: before[part]} if part in before else {}
            for part in ("labels", "annotations"):
                live["metadata"][part] = before["metadata"].get(part) or {}

        _write(admin, kind, name, namespace, back)


def _write(
    admin: Cluster, kind: str, name: str, namespace: str | None, change: Callable[[dict[str, Any]], object]
) -> None:
    for _ in range(8):  # controllers write, too
        live = admin.get(kind, name, namespace)
        assert live, name
        change(live)
        try:
            admin.update(live)
            return
        except ConflictError:
            time.sleep(0.1)
    raise AssertionError(f"{kind} {name} changes all the time")


def virtual_service(
    name: str, *, to: str = "identity-service", port: int = 9000, **rule: Any
) -> dict[str, Any]:
    host = f"{to}.{SHOP}.svc.cluster.local"
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name, "namespace": SHOP},
        "spec": {
            "hosts": [f"{name}.voiceassistant.com"],
            "gateways": ["operate"],
            "http": [{"route": [{"destination": {"host": host, "port": {"number": port}}}], **rule}],
        },
    }


def gateway() -> dict[str, Any]:
    server = {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*.voiceassistant.com"]}
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "operate", "namespace": SHOP},
        "spec": {"selector": {"istio": "ingressgateway"}, "servers": [server]},
    }


def status(running: LabState, host: str) -> int:
    """The answer of the new gateway to a log-in at *host*, 0 when there was none."""
    url = f"http://{running['istio_http']}/api/v1/auth/login"
    try:
        return httpx.post(url, headers={"host": host}, timeout=5, trust_env=False).status_code
    except httpx.HTTPError:
        return 0


@dataclass
class Users:
    """They ask the new gateway again and again, each on new connections, and note every answer."""

    running: LabState
    host: str
    answers: list[int] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Users:
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=20)

    def _ask(self) -> None:
        while not self._stop.is_set():
            self.answers.append(status(self.running, self.host))
            self._stop.wait(0.05)

    def more(self, count: int = 20) -> bool:
        """Wait until *count* further answers came."""
        wanted = len(self.answers) + count
        return until(lambda: len(self.answers) >= wanted, 60)
