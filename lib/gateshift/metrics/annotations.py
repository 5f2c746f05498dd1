"""Verdicts of a migration as Grafana annotations, by Grafana's HTTP API.

https://grafana.com/docs/grafana/latest/developers/http_api/annotations/ - the dashboards in ``dashboards/``
show what carries both tags of :data:`TAGS`. A verdict is posted once: its fingerprint is a tag as well.

``python -m gateshift.metrics.annotations ARCHIVE URL`` posts the verdicts below ARCHIVE; the token of a
service account is read from the variable GRAFANA_TOKEN.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from gateshift.errors import InputError, MetricsError
from gateshift.migration.records import journals_below, read_records
from gateshift.plan import digest_of

__all__ = ["TAGS", "Annotation", "annotations_of", "post"]

TAGS = ("gateshift", "verdict")

_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Annotation:
    """One verdict on a time axis; *time* in milliseconds since 1970, as Grafana counts."""

    time: int
    text: str
    tags: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the body of Grafana's request."""
        return {"time": self.time, "text": self.text, "tags": list(self.tags)}


def annotations_of(folder: Path) -> tuple[Annotation, ...]:
    """Return the verdicts in the journals below *folder*, oldest first."""
    paths = journals_below(folder)
    if not paths:
        raise InputError(f"{folder}: no journal.jsonl below it")
    found = []
    for path in paths:
        for record in read_records(path):
            if record.kind != "verdict":
                continue
            mark = digest_of({"time": record.time, "stage": record.data["stage"]}).removeprefix("sha256:")
            reasons = "; ".join(record.data["reasons"])
            found.append(
                Annotation(
                    round(datetime.fromisoformat(record.time).timestamp() * 1000),
                    f"stage {record.data['stage'] + 1}: {record.data['decision']}: {reasons}",
                    (*TAGS, str(record.data["decision"]), f"gateshift:{mark[:12]}"),
                )
            )
    return tuple(sorted(found, key=lambda one: one.time))


def post(annotations: Sequence[Annotation], url: str, token: str) -> int:
    """Post those that Grafana at *url* does not have yet; return how many.

    Raises :class:`~gateshift.errors.MetricsError` when Grafana does not answer or refuses; *token* is a
    service account's and appears in no message.
    """
    if not annotations:
        return 0
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=_TIMEOUT) as grafana:
            times = [one.time for one in annotations]
            asked: Mapping[str, Any] = {
                "tags": list(TAGS),
                "from": min(times) - 1,
                "to": max(times) + 1,
                "limit": 5000,
            }
            there = grafana.get("/api/annotations", params=asked).raise_for_status().json()
            known = {tag for one in there for tag in one.get("tags", ())}
            new = [one for one in annotations if one.tags[-1] not in known]
            for one in new:
                grafana.post("/api/annotations", json=one.as_json()).raise_for_status()
    except (httpx.HTTPError, ValueError) as error:
        detail = type(error).__name__
        if isinstance(error, httpx.HTTPStatusError):
            detail = f"HTTP {error.response.status_code}"
        raise MetricsError(
            f"Grafana did not take the annotations: {detail}",
            hint="the token needs annotations:create and annotations:read; it is read from GRAFANA_TOKEN",
        ) from None
    return len(new)


def main(arguments: Sequence[str]) -> int:
    """Post the verdicts of an archive: arguments are its folder and Grafana's address."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m gateshift.metrics.annotations ARCHIVE URL\n")
        return 2
    found = annotations_of(Path(arguments[0]))
    new = post(found, arguments[1], os.environ.get("GRAFANA_TOKEN", ""))
    sys.stdout.write(f"{new} of {len(found)} verdicts are new in Grafana\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
