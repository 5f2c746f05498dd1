"""Sends events through apprise, in the background, each once.

What was told stands in ``notifications.jsonl`` beside the journal: an event whose key is there is not told
again, by whichever process. A service that fails or hangs costs a line in that file and nothing else.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateshift.notify.events import Event

__all__ = ["Notifier", "deliver"]

Send = Callable[[str, str, str], Sequence[str]]
"""Takes title, text and level; returns the services that failed, named without their credentials."""


class Notifier:
    """Tells people. No method raises, and only :meth:`flush` waits."""

    def __init__(
        self,
        urls: Sequence[str],
        folder: Path,
        *,
        title: str,
        kinds: Sequence[str] = (),
        clean: Callable[[str], str] = str,
        tries: int = 3,
        pause: float = 2.0,
        send: Send | None = None,
    ) -> None:
        self._path = folder / "notifications.jsonl"
        self._title, self._kinds, self._clean = title, frozenset(kinds), clean
        self._tries, self._pause = tries, pause
        self._send = send or (deliver(urls) if urls else None)
        self._queue: queue.Queue[Event] = queue.Queue()
        self._thread: threading.Thread | None = None

    def tell(self, event: Event | None) -> None:
        """Send *event* soon, unless it was told before or nobody wants it."""
        if event is None or self._send is None or (self._kinds and event.kind not in self._kinds):
            return
        try:
            if not self._claim(event):
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="gateshift-notify", daemon=True)
                self._thread.start()
                atexit.register(self.flush)
            self._queue.put(event)
        except (OSError, RuntimeError, ValueError):
            return  # a full disk or a dying interpreter: the migration itself goes on

    def flush(self, seconds: float = 5.0) -> bool:
        """Wait until all is sent, at most *seconds*; return whether it is."""
        deadline = time.monotonic() + seconds
        while self._queue.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self._queue.unfinished_tasks

    def _work(self) -> None:
        while True:
            event = self._queue.get()
            try:
                failed = self._deliver(event)
                self._note(event, "failed" if failed else "sent", failed)
            except OSError:
                pass  # the note could not be written; nobody's migration stops for that
            finally:
                self._queue.task_done()

    def _deliver(self, event: Event) -> Sequence[str]:
        failed: Sequence[str] = ("not tried",)
        for attempt in range(self._tries):
            if attempt:
                time.sleep(self._pause * attempt)
            try:
                assert self._send is not None  # noqa: S101 - for the type checker: tell() looked
                failed = self._send(self._clean(self._title), self._clean(event.text), event.level)
            except Exception as error:  # noqa: BLE001 - whatever a service's plug-in does, we go on
                failed = (type(error).__name__,)
            if not failed:
                break
        return failed

    def _claim(self, event: Event) -> bool:
        """Note that *event* is ours to send; False when somebody has sent it or is about to."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            last = ""
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue  # a torn line tells nothing
                if entry.get("key") == event.key:
                    last = entry.get("state", "")
            if last in {"sending", "sent"}:
                return False
            file.write(self._line(event, "sending", ()))
        return True

    def _note(self, event: Event, state: str, failed: Sequence[str]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(self._line(event, state, failed))

    def _line(self, event: Event, state: str, failed: Sequence[str]) -> str:
        entry: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "key": event.key,
            "kind": event.kind,
            "state": state,
            "text": self._clean(event.text),
            "pid": os.getpid(),
        }
        if failed:
            entry["failed"] = [self._clean(name) for name in failed]
        return json.dumps(entry, ensure_ascii=False) + "\n"


def deliver(urls: Sequence[str]) -> Send:
    """Return a sender over *urls*. apprise is imported by the first message, not by every notebook."""

    def send(title: str, text: str, level: str) -> list[str]:
        import apprise  # noqa: PLC0415 - see above

        # Its log lines can carry a service's URL, and with it a token.
        logging.getLogger("apprise").disabled = True
        failed = []
        for number, url in enumerate(urls, 1):
            service = apprise.Apprise.instantiate(url, suppress_exceptions=True)
            if service is None:
                failed.append(f"url {number}: not an address apprise knows")
            elif not service.notify(body=text, title=title, notify_type=apprise.NotifyType(level)):
                failed.append(f"url {number} ({service.service_name or service.protocol}): not delivered")
        return failed

    return send
