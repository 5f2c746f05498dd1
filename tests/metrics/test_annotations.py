"""Verdicts reach Grafana's annotation API once each, at the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from gateshift.errors import MetricsError
from gateshift.metrics.annotations import main
from gateshift.metrics.dashboards import build
from tests.served import served


class Grafana:
    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()
        self.status = 200
        self.url = ""


@pytest.fixture
def grafana() -> Iterator[Grafana]:
    mine = Grafana()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, data: Any) -> None:
            mine.tokens.add(self.headers["Authorization"])
            body = json.dumps(data).encode()
            self.send_response(mine.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            low, high = int(asked["from"][0]), int(asked["to"][0])
            wanted = set(asked["tags"])
            self._answer(
                [one for one in mine.kept if low <= one["time"] <= high and wanted <= set(one["tags"])]
            )

        def do_POST(self) -> None:
            mine.kept.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._answer({"message": "Annotation added"})

        def log_message(self, *args: object) -> None:
            pass

    with served(Handler) as mine.url:
        yield mine


@pytest.fixture
def archive() -> Path:
    """A real migration on record: one stage promoted, the next rolled back."""
    return Path(__file__).parents[2] / "outputs" / "sample"


def test_each_verdict_is_posted_once_with_the_tags_the_dashboards_ask_for(
    grafana: Grafana, archive: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFANA_TOKEN", "very-secret")
    for new in (2, 0):
        assert main([str(archive), grafana.url]) == 0
        assert f"{new} of 2 verdicts are new" in capsys.readouterr().out
    said = [one["text"].split(": ")[:2] for one in grafana.kept]
    assert said == [["stage 1", "promote"], ["stage 2", "rollback"]]
    assert "error rate" in grafana.kept[1]["text"]
    assert grafana.tokens == {"Bearer very-secret"}
    for dashboard in build().values():
        (shown,) = dashboard["annotations"]["list"]
        assert all(set(shown["target"]["tags"]) <= set(one["tags"]) for one in grafana.kept)


def test_a_refusal_is_named_without_the_token(
    grafana: Grafana, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFANA_TOKEN", "very-secret")
    grafana.status = 403
    with pytest.raises(MetricsError, match="HTTP 403") as failed:
        main([str(archive), grafana.url])
    assert "very-secret" not in f"{failed.value} {failed.value.hint}"
