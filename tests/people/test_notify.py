"""Notifications: each event once, no secret, nothing that fails or hangs in anybody's way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gateshift.archive.redact import Redactor
from gateshift.errors import Blocked, GateClosed, ParamsError, RolledBack
from gateshift.migration.journal import Journal
from gateshift.migration.state import State
from gateshift.notify import Event, Notifier, event_of, problem, waiting
from gateshift.params import load, secrets_of


class Service:
    """A web hook on loopback that keeps what it is sent."""

    def __init__(self) -> None:
        service = self
        self.bodies: list[str] = []
        self.status, self.delay = 200, 0.0

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                time.sleep(service.delay)
                size = int(self.headers.get("Content-Length") or 0)
                service.bodies.append(self.rfile.read(size).decode())
                self.send_response(service.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def service() -> Iterator[Service]:
    one = Service()
    yield one
    one.server.shutdown()
    one.server.server_close()


def notifier(service: Service, folder: Path, **more: object) -> Notifier:
    return Notifier([service.url], folder, title="gateshift LAB: m", pause=0.01, **more)  # type: ignore[arg-type]


EVENT = Event("started", "started/1/0", "info", "Stage 1 started: 10 % of traffic goes to Istio.")


def test_an_event_arrives_over_the_wire(service: Service, tmp_path: Path) -> None:
    one = notifier(service, tmp_path)
    one.tell(EVENT)
    assert one.flush(30)
    (body,) = service.bodies
    assert "Stage 1 started" in json.loads(body)["message"]
    assert json.loads(body)["title"] == "gateshift LAB: m"


def test_the_same_event_is_told_once_by_this_process_and_by_the_next(
    service: Service, tmp_path: Path
) -> None:
    first, second = notifier(service, tmp_path), notifier(service, tmp_path)
    for one in (first, first, second):
        one.tell(EVENT)
        assert one.flush(30)
    assert len(service.bodies) == 1


def test_what_was_not_delivered_may_be_told_again(service: Service, tmp_path: Path) -> None:
    service.status = 500
    one = notifier(service, tmp_path)
    one.tell(EVENT)
    assert one.flush(30)
    assert len(service.bodies) == 3
    last = json.loads((tmp_path / "notifications.jsonl").read_text().splitlines()[-1])
    assert last["state"] == "failed"
    service.status = 200
    one.tell(EVENT)
    assert one.flush(30)
    assert json.loads((tmp_path / "notifications.jsonl").read_text().splitlines()[-1])["state"] == "sent"


def test_no_secret_leaves(service: Service, tmp_path: Path) -> None:
    clean = Redactor(["s3cret-token-value"]).text
    one = notifier(service, tmp_path, clean=clean)
    one.tell(Event("held", "h", "warning", "refused by s3cret-token-value"))
    assert one.flush(30)
    assert "s3cret" not in service.bodies[0]
    assert "s3cret" not in (tmp_path / "notifications.jsonl").read_text()


def test_a_service_that_hangs_holds_nothing_up(service: Service, tmp_path: Path) -> None:
    service.delay = 2.0
    one = notifier(service, tmp_path, tries=1)
    begun = time.monotonic()
    one.tell(EVENT)
    assert time.monotonic() - begun < 1.0
    assert not one.flush(0.1)


@pytest.mark.parametrize("url", ["nonsense", "json://127.0.0.1:1/x", "slack://bad"])
def test_a_wrong_or_dead_address_stops_nothing_and_names_no_credential(url: str, tmp_path: Path) -> None:
    one = Notifier([url], tmp_path, title="t", tries=1)
    one.tell(EVENT)
    assert one.flush(20)
    text = (tmp_path / "notifications.jsonl").read_text()
    assert '"failed"' in text
    assert url not in text


def test_an_unwritable_folder_stops_nothing(service: Service, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one = notifier(service, tmp_path / "file" / "below")
    one.tell(EVENT)
    assert service.bodies == []


def test_only_what_is_wanted_is_told(service: Service, tmp_path: Path) -> None:
    one = notifier(service, tmp_path, kinds=("rolled-back",))
    one.tell(EVENT)
    assert one.flush(1)
    assert service.bodies == []


def test_a_migration_is_told_in_five_messages_and_a_resume_in_none(tmp_path: Path) -> None:
    book = Journal.open(tmp_path / "journal.jsonl", who="t", run="r")
    told: list[Event | None] = []
    book.listener = lambda record: told.append(event_of(record, book.state))
    book.append("migration.opened", params_digest="0")
    book.append("preflight.done", ok=True)
    for kind in ("install", "apply"):
        book.append(f"{kind}.intent", snapshot="s")
        book.append(f"{kind}.done")
    book.append("verify.done", ok=True)
    book.append("stage.entered", stage=0, weight=10)
    book.append("stage.entered", stage=0, weight=10)  # a resumed stage is entered again
    book.append("shift.intent", stage=0, **{"from": 0, "to": 10}, snapshot={})
    book.append("shift.done", to=10)
    book.append("stage.arrived", stage=0, share=10.0)
    book.append("verdict", stage=0, decision="promote")
    book.append("stage.promoted", stage=0)
    book.append("rollback.started", reason="errors", **{"from": 10})
    book.append("rollback.shifted")
    book.append("rollback.done", checklist=[], seconds_to_users=4.0)
    events = [one for one in told if one]
    assert [one.kind for one in events] == ["started", "started", "promoted", "rolled-back", "rolled-back"]
    assert len({one.key for one in events}) == 4
    assert events[3].key.split("/")[1] == events[4].key.split("/")[1]


def test_an_unproven_return_asks_for_a_person() -> None:
    record = type("R", (), {"kind": "rollback.done", "data": {"seconds_to_users": None}})()
    event = event_of(record, State())
    assert event is not None
    assert event.kind == "needs-person"


def test_errors_are_told_by_what_they_ask_of_a_person() -> None:
    state = State()
    held = problem(Blocked("quota: 3 cores missing"), "00_preflight", state)
    later = problem(Blocked("quota: 4 cores missing"), "00_preflight", state)
    assert held is not None
    assert later is not None
    assert (held.kind, held.key) == ("held", later.key)
    assert problem(RolledBack("x"), "50_canary", state) is None
    assert problem(GateClosed("x"), "50_canary", state) is None
    assert problem(ParamsError("x"), "50_canary", state) is None
    failed = problem(ZeroDivisionError("x"), "50_canary", state)
    assert failed is not None
    assert failed.kind == "failed"
    first, again = (waiting("abcd", "Stage 1", State(attempts=n)) for n in (1, 2))
    assert "abcd" in first.text
    assert first.key != again.key, "the same plan in a later attempt needs a person again"


def test_events_in_a_params_file_are_known_ones(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "params/production.yaml").read_text(encoding="utf-8")
    path = tmp_path / "p.yaml"
    path.write_text(text.replace("events: [started", "events: [startled"), encoding="utf-8")
    with pytest.raises(ParamsError, match=r"notify\.events.*startled"):
        load(path, resolvers={"env": lambda _: "x"})
    path.write_text(text.replace("urls: []", 'urls: ["${env:HOOK}"]'), encoding="utf-8")
    hooks = {"HOOK": "json://token-of-the-hook@example.com/"}
    params = load(path, resolvers={"env": lambda name: hooks.get(name, "x")})
    assert "token-of-the-hook" not in repr(params)
    assert any("token-of-the-hook" in secret for secret in secrets_of(params))


def test_what_happened_is_told_in_the_language_of_the_migration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATESHIFT_LANG", "zh")
    held = problem(Blocked("another change is in progress"), "50_canary", State())
    plan = waiting("0123456789abcdef", "one object", State())
    assert held
    assert "one object" in plan.text  # what the catalogue does not know stays
    known = problem(Blocked("the lock file is gone or names another holder"), "50_canary", State())
    assert known
    assert "lock file" not in known.text
    assert known.key != held.key
    monkeypatch.delenv("GATESHIFT_LANG")
    again = problem(Blocked("the lock file is gone or names another holder"), "50_canary", State())
    assert again
    assert again.key == known.key, "the language is no other occurrence"
