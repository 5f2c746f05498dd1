"""A small identity provider on loopback: it gives codes, and tokens for codes, to one client."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

__all__ = ["CLIENT_SECRET", "identity_provider"]

CLIENT_ID, CLIENT_SECRET = "shop", "only the gateway and the provider know"


class _Provider(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    codes: dict[str, dict[str, str]]
    seen: list[dict[str, Any]]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Keep the test's output clean."""

    def do_GET(self) -> None:
        """Agree to whoever asks: a browser is sent back with a code."""
        asked = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        self.seen.append({"path": urlsplit(self.path).path, **asked})
        code = secrets.token_urlsafe(8)
        self.codes[code] = asked
        back = urlencode({"code": code, "state": asked["state"]})
        self._answer(302, {}, location=f"{asked['redirect_uri']}?{back}")

    def do_POST(self) -> None:
        """Give a token for a code, once, to the client that proves itself and the browser's verifier."""
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        form = {key: values[0] for key, values in parse_qs(body).items()}
        self.seen.append({"path": self.path, **form})
        known = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        asked = self.codes.pop(form.get("code", ""), None)
        if self.headers.get("authorization") not in (f"Basic {known}", f"Basic {_quoted()}") or asked is None:
            self._answer(401, {"error": "invalid_client"})
            return
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        same = asked.get("code_challenge", challenge) == challenge
        if not same or form["redirect_uri"] != asked["redirect_uri"]:
            self._answer(400, {"error": "invalid_grant"})
            return
        self._answer(200, {"access_token": "an-opaque-token", "token_type": "Bearer", "expires_in": 300})

    def _answer(self, status: int, body: dict[str, Any], location: str = "") -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if location:
            self.send_header("location", location)
        self.end_headers()
        self.wfile.write(data)


def _quoted() -> str:
    """RFC 6749 has both parts written as in a form before they are joined."""
    text = urlencode({"": CLIENT_ID})[1:] + ":" + urlencode({"": CLIENT_SECRET})[1:]
    return base64.b64encode(text.encode()).decode()


@contextmanager
def identity_provider() -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Serve it; give its port and what it was asked."""
    seen: list[dict[str, Any]] = []
    kind = type("Provider", (_Provider,), {"codes": {}, "seen": seen})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], seen
    finally:
        server.shutdown()
        server.server_close()
