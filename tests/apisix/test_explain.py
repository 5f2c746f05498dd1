from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateshift.apisix.explain import explain_command, run
from gateshift.errors import ConfigurationError

CONFIG = """
routes:
  - {id: 1, uri: /a, methods: [POST]}
  - {id: two, uri: "/*", host: a.com}
  - {uri: /b}
#END
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "apisix.yaml"
    file.write_text(CONFIG)
    return file


def test_answers_keep_order_and_the_ids_as_written(config: Path, tmp_path: Path) -> None:
    requests = tmp_path / "r.jsonl"
    requests.write_text(
        '{"path": "/a", "method": "POST"}\n\n{"path": "/x", "host": "a.com"}\n'
        '{"path": "/b"}\n{"path": "/z"}\n'
    )
    out = io.StringIO()
    assert run([config], None, requests, False, out) == 4
    winners = [json.loads(line)["winner"] for line in out.getvalue().splitlines()]
    assert winners == [1, "two", "arr_3", None]


def test_why_names_the_failed_condition(config: Path) -> None:
    result = CliRunner().invoke(
        explain_command,
        ["--config", str(config), "--requests", "-", "--why", "--router", "radixtree_uri"],
        input='{"path": "/a"}\n',
    )
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["winner"] is None
    assert [c["route"] for c in answer["candidates"]] == [1, "two"]
    assert "methods" in answer["candidates"][0]["failed"][0]


PATHS = """
routes:
- {id: space, uri: "/a b"}
- {id: percent, uri: "/a%20b"}
- {id: slash, uri: "/a//b"}
- {id: colon, uri: "/c", vars: [[arg_q, ==, "1 2"], [arg_p, ==, "+"]]}
- {id: flag, uri: "/c", vars: [[arg_f, ==, true]]}
- {id: sent, uri: "/c", vars: [[request_uri, ==, "/c?q=%31"]]}
- {id: under, uri: "/h", vars: [[http_x_a_b, ==, "1"]]}
- {id: port, uri: "/p", vars: [[http_host, ==, "A.com:81"], [host, ==, "a.com"]]}
- {id: jar, uri: "/j", vars: [[cookie_s, ==, "2"]]}
- {id: flagged, uri: "/y", vars: [[cookie_yes, ==, "true"], [http_cookie, ==, "yes=true"]]}
- {id: first, uri: "/f", vars: [[arg_a, ==, "1"]]}
"""


@pytest.mark.parametrize(
    ("request_", "winner"),
    [
        # path is what APISIX compares, and nothing of it is decoded, resolved or merged again
        ({"path": "/a b"}, "space"),
        ({"path": "/a%20b"}, "percent"),
        ({"path": "/a//b"}, "slash"),
        ({"path": "/a/./b"}, None),
        ({"path": "/A b"}, None),
        # what stands behind ? is the query as sent, unless args says otherwise
        ({"path": "/c?q=1+2&p=%2B"}, "colon"),
        ({"path": "/c", "args": {"q": "1 2", "p": "+"}}, "colon"),
        ({"path": "/c", "args": {"q": "1+2", "p": "%2B"}}, None),
        ({"path": "/c?q=1+2&p=%2B", "args": {"f": True}}, "flag"),
        ({"path": "/c?f"}, "flag"),
        ({"path": "/c?q=%31"}, "sent"),
        ({"path": "/f", "args": {"a": ["1", "2"]}}, "first"),
        ({"path": "/f?a=1&a=2"}, "first"),
        ({"path": "/f", "args": {"a": 1}}, "first"),
        # headers in any case and spelling; a port of the host is no part of $host
        ({"path": "/h", "headers": {"X_A-b": 1}}, "under"),
        ({"path": "/p", "host": "A.com:81"}, "port"),
        ({"path": "/p", "headers": {"HOST": "A.com:81"}}, "port"),
        ({"path": "/j", "cookies": {"s": 2}}, "jar"),
        ({"path": "/j", "cookies": {"s": ["2", "1"]}}, "jar"),
        ({"path": "/y", "cookies": {"yes": True}}, "flagged"),
        ({"path": "/j", "headers": {"Cookie": "s=1; s=2"}}, "jar"),
        ({"path": "/j", "headers": {"Cookie": "s=1"}, "cookies": {"s": "2"}}, "jar"),
    ],
)
def test_a_request_is_what_the_help_says(
    request_: dict[str, Any], winner: str | None, tmp_path: Path
) -> None:
    config, lines = tmp_path / "apisix.yaml", tmp_path / "r.jsonl"
    config.write_text(PATHS)
    lines.write_text(json.dumps(request_))
    out = io.StringIO()
    run([config], "radixtree_uri", lines, False, out)
    assert json.loads(out.getvalue())["winner"] == winner


def test_the_help_says_what_a_request_is() -> None:
    told = " ".join(CliRunner().invoke(explain_command, ["--help"]).output.split())
    for part in (
        "Only path is required",
        "($uri): percent-decoded",
        "slashes merged",
        'behind a "?" is the query string',
        "gives args where args is absent",
        *("method", "host", "headers", "args", "cookies", "remote_addr", "scheme, server_port"),
    ):
        assert part in told


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "not JSON"),
        ('{"path": "/a", "headers": [["x", "1"]]}', "headers is an object"),
        ('{"path": "/a", "headers": {"x": {"y": 1}}}', "headers.x is text, or a list of texts"),
        ('{"path": "/a", "args": {"x": [["1"]]}}', "args.x is text, or a list of texts"),
        ("[]", "JSON object"),
        ("{}", "path is required"),
        ('{"path": 1}', "path is text"),
        ('{"path": "/", "args": []}', "args is an object"),
    ],
)
def test_bad_requests_name_their_line(config: Path, tmp_path: Path, line: str, part: str) -> None:
    requests = tmp_path / "r.jsonl"
    requests.write_text('{"path": "/"}\n' + line + "\n")
    with pytest.raises(ConfigurationError, match="line 2") as error:
        run([config], None, requests, False, io.StringIO())
    assert part in str(error.value)


def test_bad_input_exits_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(explain_command, ["--config", str(tmp_path / "no"), "--requests", "-"])
    assert result.exit_code == 2
    assert "no such file" in result.stderr


def test_starting_imports_no_heavy_library() -> None:
    code = (
        "import sys, gateshift.apisix.explain; heavy = ('pandas', 'kubernetes', 'httpx', 'papermill');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_null_is_absent_and_several_values_are_a_list(tmp_path: Path) -> None:
    config = tmp_path / "apisix.yaml"
    config.write_text(
        "routes:\n- {id: none, uri: /*, vars: [[http_x, ~~, .*]]}\n- {id: two, uri: /*, vars: "
        "[[http_y, ==, '1, 2'], [arg_a, ==, '1']]}\n"
    )
    requests = tmp_path / "r.jsonl"
    lines = [
        {"path": "/", "headers": {"X": None, "y": ["1", "2"]}, "args": {"a": ["1", "2"], "b": None}},
        {"path": "/\ud800", "host": None, "cookies": {"c": 5}},
    ]
    requests.write_text("\n".join(map(json.dumps, lines)))
    out = io.StringIO()
    assert run([config], None, requests, False, out) == 2
    assert [json.loads(line)["winner"] for line in out.getvalue().splitlines()] == ["two", None]


def test_half_a_character_in_a_configuration_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "apisix.json"
    config.write_text(json.dumps({"routes": [{"id": 1, "uri": "/\ud83d"}]}))
    with pytest.raises(ConfigurationError, match="half of a character"):
        run([config], None, config, False, io.StringIO())
