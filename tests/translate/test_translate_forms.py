"""One example in every form of an APISIX configuration gives the same objects and the same ledger."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from click.testing import CliRunner

from gateshift.cli.translation import translate_command
from gateshift.translate.model import FILES
from tests.served import served

NODES = [{"host": "web.shop.svc.cluster.local", "port": 8080, "weight": 100}]
UPSTREAM = {"type": "roundrobin", "nodes": NODES, "scheme": "http", "retries": 1}
CORS = {"allow_origins": "https://app.example.com", "allow_methods": "GET,POST"}
ROUTE: dict[str, Any] = {
    "id": "shop_web_items",
    "name": "shop_web_items",
    "uris": ["/items", "/items/*"],
    "hosts": ["shop.example.com"],
    "methods": ["GET", "POST"],
    "vars": [["http_x_version", "==", "2"]],
    "priority": 3,
    "upstream": UPSTREAM,
    "plugins": {"cors": CORS},
}
RULE = {"id": "shop_everywhere", "plugins": {"request-id": {"header_name": "X-Request-Id"}}}
SERVED = {"routes": [ROUTE], "global_rules": [RULE]}
KEY = "read-only-key"


def stored() -> dict[str, dict[str, Any]]:
    return {f"/apisix/{kind}/{one['id']}": one for kind, items in SERVED.items() for one in items}


def v3() -> dict[str, Any]:
    return {
        kind: {
            "total": len(items),
            "list": [{"key": f"/apisix/{kind}/{one['id']}", "value": one} for one in items],
        }
        for kind, items in SERVED.items()
    }


def v2() -> dict[str, Any]:
    return {
        kind: {
            "node": {"dir": True, "nodes": [{"key": f"/apisix/{kind}/{o['id']}", "value": o} for o in items]}
        }
        for kind, items in SERVED.items()
    }


def kvs() -> dict[str, Any]:
    def coded(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    return {"kvs": [{"key": coded(k), "value": coded(json.dumps(v))} for k, v in stored().items()]}


def crds() -> str:
    route = {
        "apiVersion": "apisix.apache.org/v2",
        "kind": "ApisixRoute",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "http": [
                {
                    "name": "items",
                    "priority": 3,
                    "match": {
                        "hosts": ["shop.example.com"],
                        "paths": ["/items", "/items/*"],
                        "methods": ["GET", "POST"],
                        "exprs": [
                            {"subject": {"scope": "Header", "name": "X-Version"}, "op": "Equal", "value": "2"}
                        ],
                    },
                    "backends": [{"serviceName": "web", "servicePort": 8080}],
                    "plugins": [{"name": "cors", "enable": True, "config": CORS}],
                }
            ]
        },
    }
    upstream = {
        "apiVersion": "apisix.apache.org/v2",
        "kind": "ApisixUpstream",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"scheme": "http", "retries": 1},
    }
    rule = {
        "apiVersion": "apisix.apache.org/v2",
        "kind": "ApisixGlobalRule",
        "metadata": {"name": "everywhere", "namespace": "shop"},
        "spec": {
            "plugins": [{"name": "request-id", "enable": True, "config": RULE["plugins"]["request-id"]}]
        },
    }
    return yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [route, upstream, rule]})


TEXTS = {
    "standalone.yaml": yaml.safe_dump(SERVED) + "#END\n",
    "standalone.json": json.dumps(SERVED),
    "admin-v3.json": json.dumps(v3()),
    "admin-v2.json": json.dumps(v2()),
    "etcd.json": json.dumps(stored()),
    "etcdctl.json": json.dumps(kvs()),
    "crds.yaml": crds(),
}


class Api(BaseHTTPRequestHandler):
    """An Admin API with a key of the role viewer: it pages, and refuses every write."""

    server_version = "APISIX/3.9.1"
    sys_version = ""
    written: tuple[str, ...] = ()

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        items = v3().get(url.path.removeprefix("/apisix/admin/"))
        status, body = (200, items) if items else (404, {})
        if self.headers["X-API-KEY"] != KEY:
            status, body = 401, {"error_msg": "failed to check token"}
        elif items:
            page = int(parse_qs(url.query)["page"][0])
            body = {"total": items["total"], "list": items["list"] if page == 1 else []}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self) -> None:
        Api.written = (*Api.written, self.path)
        self.send_error(403)

    def __getattr__(self, name: str) -> Any:
        if name in ("do_PUT", "do_POST", "do_PATCH", "do_DELETE"):
            return self.refuse
        raise AttributeError(name)


@pytest.fixture
def address() -> Iterator[str]:
    with served(Api) as where:
        yield where


def translated(source: str, out: Path, key: str | None = None) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Return the objects by file and the ledger without the place where each value was written."""
    command = ["--in", source, "--out", str(out), "--requests", "50", "--router", "radixtree_host_uri"]
    done = CliRunner().invoke(translate_command, [*command, *(["--admin-key", key] if key else [])])
    assert done.exit_code == 0, done.output
    ledger = json.loads((out / "ledger.json").read_text())["entries"]
    entries = [{key: value for key, value in one.items() if key != "source"} for one in ledger]
    # A service id or a name that a form does not hold is no difference of what is served.
    entries = [one for one in entries if one["path"] not in ("id", "name")]
    entries.sort(key=lambda one: (one["resource"], one["path"]))
    return {name: (out / name).read_text() for name in FILES}, entries


def test_files_of_every_form_give_the_same(tmp_path: Path) -> None:
    found = {}
    for name, text in TEXTS.items():
        source = tmp_path / name
        source.write_text(text)
        found[name] = translated(str(source), tmp_path / f"out-{name}")
    objects, ledger = found["standalone.yaml"]
    assert "shop.example.com" in objects["virtual-service.yaml"]
    assert len(ledger) > 15
    for name, (files, entries) in found.items():
        assert files == objects, name
        assert entries == ledger, name


def test_adc_names_global_rules_by_their_plugin(tmp_path: Path) -> None:
    for name, data in (
        ("adc.yaml", {"routes": [ROUTE], "global_rules": RULE["plugins"]}),
        ("apisix.yaml", {"routes": [ROUTE], "global_rules": [{**RULE, "id": "request-id"}]}),
    ):
        (tmp_path / name).write_text(yaml.safe_dump(data))
    adc = translated(str(tmp_path / "adc.yaml"), tmp_path / "a")
    assert adc == translated(str(tmp_path / "apisix.yaml"), tmp_path / "b")


def test_a_live_admin_api_gives_the_same_and_is_only_read(tmp_path: Path, address: str) -> None:
    source = tmp_path / "apisix.yaml"
    source.write_text(TEXTS["standalone.yaml"])
    assert translated(address, tmp_path / "live", KEY) == translated(str(source), tmp_path / "file")
    assert not Api.written
    assert KEY not in "".join(one.read_text() for one in (tmp_path / "live").iterdir())


def test_an_admin_api_needs_its_key_and_stands_alone(tmp_path: Path, address: str) -> None:
    invoke = CliRunner().invoke
    missing = invoke(
        translate_command, ["--in", address, "--out", str(tmp_path)], env={"APISIX_ADMIN_KEY": ""}
    )
    assert "needs its key" in str(missing.exception)
    joined = ["--in", address, "--in", "x.yaml", "--out", str(tmp_path), "--admin-key", KEY]
    assert "cannot be joined" in str(invoke(translate_command, joined).exception)
