"""With a proxy in the environment, what listens on this machine is still reached."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading

from gateshift.loopback import reach_directly

FETCH = """
import json, sys
from gateshift.loopback import reach_directly
if sys.argv[2] == "directly":
    reach_directly()
import httpx
from botocore.utils import get_environ_proxies
try:
    code = httpx.get(sys.argv[1], timeout=5).status_code
except httpx.HTTPError as error:
    code = type(error).__name__
print(json.dumps([code, bool(get_environ_proxies(sys.argv[1]))]))
"""


class Here(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_proxy_is_not_asked_for_what_listens_here() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Here)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    env |= {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}  # nobody listens there
    url = f"http://127.0.0.1:{server.server_port}/"
    seen = {}
    for way in ("as it is", "directly"):
        command = [sys.executable, "-c", FETCH, url, way]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60)
        seen[way] = json.loads(done.stdout)
    server.shutdown()
    assert seen == {"as it is": ["ConnectError", True], "directly": [204, False]}


def test_what_the_user_excluded_stays_and_without_a_proxy_nothing_is_set() -> None:
    env = {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "10.0.0.0/8,localhost"}
    reach_directly(env)
    assert env["NO_PROXY"] == "10.0.0.0/8,localhost,127.0.0.1,::1"
    reach_directly(env)
    assert env["NO_PROXY"].count("127.0.0.1") == 1
    plain = {"PATH": "/bin"}
    reach_directly(plain)
    assert plain == {"PATH": "/bin"}
