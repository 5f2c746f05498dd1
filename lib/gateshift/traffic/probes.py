"""Functional checks through one gateway's address, before any client's DNS knows it.

HTTP, WebSocket and gRPC, each with the real host name in Host / :authority and SNI while the connection
goes to the gateway (what curl's ``--connect-to`` does). Certificates are verified against the host name.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar
from urllib.parse import urljoin

import httpx

from gateshift.errors import ParamsError
from gateshift.params.model import Probe

__all__ = ["Address", "Answer", "Parity", "ProbeResult", "ask_all", "parity", "run"]

_Question = TypeVar("_Question")
_Result = TypeVar("_Result")

_AT_ONCE = 4
_AGAIN = 2
_GRPC_SILENT = frozenset({4, 14})
"""gRPC codes that a client makes itself: DEADLINE_EXCEEDED and UNAVAILABLE."""

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Address:
    """Where a gateway is reached: its load balancer's name and ports.

    *connect_to* maps ``name:port`` to the ``address:port`` that is really connected to; without an entry
    the name itself is. *ca_file* replaces the system's certificate authorities.
    """

    host: str
    http_port: int = 80
    https_port: int = 443
    connect_to: Mapping[str, str] = field(default_factory=dict)
    ca_file: str | None = None

    def endpoint(self, *, tls: bool) -> tuple[str, int]:
        """Return the address and port to connect to."""
        port = self.https_port if tls else self.http_port
        target = self.connect_to.get(f"{self.host}:{port}", f"{self.host}:{port}")
        name, colon, number = target.rpartition(":")
        if not colon or not number.isdigit():
            raise ParamsError(f"verify.connect_to: {target!r} is not address:port")
        return name.strip("[]"), int(number)

    def context(self) -> ssl.SSLContext:
        """Return a verifying TLS context."""
        return ssl.create_default_context(cafile=self.ca_file)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a gateway answered. ``status`` is an HTTP status or a gRPC code; None when nothing came.

    ``late`` when it was the time limit that ended it.
    """

    status: int | None
    detail: str = ""
    content_type: str = ""
    body: bytes = b""
    location: str = ""
    late: bool = False


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One probe's outcome; ``why`` is empty when it passed and never holds a token."""

    name: str
    kind: str
    ok: bool
    status: int | None
    why: str
    seconds: float
    answer: Answer


@dataclass(frozen=True, slots=True)
class Parity:
    """The same probe at both gateways. ``skipped`` probes have a method that may change data."""

    name: str
    agrees: bool
    why: str
    skipped: bool = False


def run(
    probes: Sequence[Probe], address: Address, *, timeout: float = 10.0, patient: bool = False
) -> tuple[ProbeResult, ...]:
    """Send every probe through *address*, at most four at a time; *timeout* in seconds each.

    When *patient*, one that is late is sent twice more, unless its method may change data, and passes only
    if both are answered as wanted: a moment in which this machine is slow fails nothing, and a gateway that
    drops some requests does not pass by luck. Where many are late it is no such moment.
    """
    results = ask_all(
        lambda probe: _one(probe, address, timeout),
        probes,
        at_once=_AT_ONCE,
        late=lambda probe, result: patient and result.answer.late and _repeatable(probe),
        good=lambda result: result.ok,
    )
    return tuple(results)


def ask_all(
    ask: Callable[[_Question], _Result],
    questions: Sequence[_Question],
    *,
    at_once: int,
    late: Callable[[_Question, _Result], bool],
    good: Callable[[_Result], bool],
) -> list[_Result]:
    """Ask *questions* side by side, *at_once* at a time; one whose result is *late* is asked twice more.

    It passes only if both are *good*: what drops some must not pass by luck. More late ones than *at_once*
    are no slow moment of this machine or of the gateway and are left as they are.
    """

    def twice(question: _Question) -> _Result:
        again = ask(question)
        return ask(question) if good(again) else again

    with ThreadPoolExecutor(at_once) as pool:
        results = list(pool.map(ask, questions))
        behind = [i for i, question in enumerate(questions) if late(question, results[i])]
        if len(behind) <= at_once:
            for index, again in zip(behind, pool.map(lambda i: twice(questions[i]), behind), strict=True):
                results[index] = again
    return results


def _repeatable(probe: Probe) -> bool:
    return probe.kind != "http" or probe.method.upper() in SAFE_METHODS


def parity(
    probes: Sequence[Probe],
    apisix: Address,
    istio: Address,
    *,
    unsafe: bool = False,
    timeout: float = 10.0,
) -> tuple[Parity, ...]:
    """Replay *probes* at both gateways; compare status, redirect target and, for answers below 400, type.

    Probes with a method that may change data are skipped unless *unsafe*, and say so.
    """
    sent = [p for p in probes if unsafe or _repeatable(p)]
    old = {r.name: r for r in run(sent, apisix, timeout=timeout)}
    new = {r.name: r for r in run(sent, istio, timeout=timeout)}
    for _ in range(_AGAIN):
        # A gateway that did not answer in time was not compared; an answer that differs is not asked again.
        late = [p for p in sent if _unanswered(p, old[p.name].answer) or _unanswered(p, new[p.name].answer)]
        old |= {r.name: r for r in run(late, apisix, timeout=timeout)}
        new |= {r.name: r for r in run(late, istio, timeout=timeout)}
    results = []
    for probe in probes:
        if probe.name not in old:
            results.append(Parity(probe.name, False, f"{probe.method} may change data; not sent", True))
            continue
        why = _difference(old[probe.name].answer, new[probe.name].answer)
        results.append(Parity(probe.name, not why, why))
    return tuple(results)


def _unanswered(probe: Probe, answer: Answer) -> bool:
    return answer.status is None or (probe.kind == "grpc" and answer.status in _GRPC_SILENT)


def _difference(old: Answer, new: Answer) -> str:
    if old.status is None or new.status is None:
        return "; ".join(
            f"{who} did not answer: {a.detail}"
            for who, a in (("APISIX", old), ("Istio", new))
            if a.status is None
        )
    if old.status != new.status:
        # Both refuse, for want of credentials: Istio's RequestAuthentication alone answers 403, APISIX 401.
        alike = {old.status, new.status} == {401, 403}
        return "" if alike else f"APISIX answers {old.status}, Istio {new.status}"
    if old.status >= 400:
        return ""  # the same refusal; each gateway has its own error page
    return _other_answer(old, new)


def _other_answer(old: Answer, new: Answer) -> str:
    if old.location != new.location:
        return f"APISIX redirects to {_place(old.location)}, Istio to {_place(new.location)}"
    if old.content_type != new.content_type:
        return f"APISIX sends {old.content_type or 'no type'}, Istio {new.content_type or 'no type'}"
    return ""


def _place(location: str) -> str:
    """Return a redirect's target without its query, which may hold a token."""
    return location.partition("?")[0] or "nowhere"


def _one(probe: Probe, address: Address, timeout: float) -> ProbeResult:
    started = time.monotonic()
    send = {"http": _http, "websocket": _websocket, "grpc": _grpc}[probe.kind]
    try:
        answer = send(probe, address, timeout)
    except ssl.SSLError as error:
        answer = Answer(None, f"TLS failed: {error.reason or error}")
    except (OSError, TimeoutError) as error:
        name, port = address.endpoint(tls=probe.tls)
        answer = Answer(None, f"cannot connect to {name}:{port}: {error.strerror or type(error).__name__}")
        answer = replace(answer, late=isinstance(error, TimeoutError))
    wanted = _wanted(probe)
    ok = answer.status == wanted
    why = ""
    if not ok:
        why = answer.detail if answer.status is None else f"answered {answer.status} instead of {wanted}"
        if answer.status is not None and answer.detail:
            why += f" ({answer.detail})"
    return ProbeResult(probe.name, probe.kind, ok, answer.status, why, time.monotonic() - started, answer)


def _wanted(probe: Probe) -> int:
    """Return the expected status; 200, the default, means 101 for WebSocket and 0 (OK) for gRPC."""
    if probe.expect == 200:
        return {"websocket": 101, "grpc": 0}.get(probe.kind, 200)
    return probe.expect


def _token(probe: Probe) -> dict[str, str]:
    headers = {name.lower(): value.get_secret_value() for name, value in probe.headers.items()}
    if probe.token:
        headers["authorization"] = f"Bearer {probe.token.get_secret_value()}"
    return headers


def _http(probe: Probe, address: Address, timeout: float) -> Answer:
    name, port = address.endpoint(tls=probe.tls)
    scheme = "https" if probe.tls else "http"
    bracketed = f"[{name}]" if ":" in name else name
    headers = {"host": probe.host, **_token(probe)}
    if probe.body is not None and probe.body.lstrip()[:1] in ("{", "["):
        headers.setdefault("content-type", "application/json")
    try:
        # trust_env off: a proxy of the environment must not answer for the gateway.
        with httpx.Client(verify=address.context(), trust_env=False, timeout=timeout) as client:
            got = client.request(
                probe.method.upper(),
                f"{scheme}://{bracketed}:{port}{probe.path}",
                headers=headers,
                content=probe.body,
                extensions={"sni_hostname": probe.host},
            )
    except httpx.TimeoutException:
        return Answer(None, f"no answer from {name}:{port} within {timeout:g} s", late=True)
    except httpx.HTTPError as error:
        return Answer(None, f"cannot reach {name}:{port}: {error}")
    content_type = got.headers.get("content-type", "").partition(";")[0]
    location = got.headers.get("location", "")
    return Answer(
        got.status_code,
        got.reason_phrase if got.is_error else "",
        content_type,
        got.content,
        # APISIX writes a relative redirect, Envoy an absolute one: for a client it is the same place.
        urljoin(f"{scheme}://{probe.host}{probe.path}", location) if location else "",
    )


def _websocket(probe: Probe, address: Address, timeout: float) -> Answer:
    from websockets.exceptions import InvalidHandshake, InvalidStatus, WebSocketException  # noqa: PLC0415
    from websockets.sync.client import connect  # noqa: PLC0415 - only when such a probe exists

    name, port = address.endpoint(tls=probe.tls)
    scheme = "wss" if probe.tls else "ws"
    body = b""
    with socket.create_connection((name, port), timeout=timeout) as sock:
        try:
            with connect(
                f"{scheme}://{probe.host}{probe.path}",
                sock=sock,
                ssl=address.context() if probe.tls else None,
                server_hostname=probe.host if probe.tls else None,
                additional_headers=_token(probe),
                open_timeout=timeout,
                close_timeout=min(timeout, 2.0),
                proxy=None,
            ) as connection:
                if probe.body is not None:
                    connection.send(probe.body)
                    got = connection.recv(timeout=timeout)
                    body = got.encode() if isinstance(got, str) else got
                return Answer(101, "", "websocket", body)
        except InvalidStatus as error:
            return Answer(error.response.status_code, "no WebSocket upgrade")
        except InvalidHandshake as error:
            return Answer(None, f"the WebSocket handshake failed: {error}")
        except TimeoutError:
            return Answer(None, f"no WebSocket answer within {timeout:g} s", late=True)
        except WebSocketException as error:
            return Answer(None, f"the WebSocket was closed: {error}")


def _grpc(probe: Probe, address: Address, timeout: float) -> Answer:
    import grpc  # noqa: PLC0415 - slow to import; only when such a probe exists

    name, port = address.endpoint(tls=probe.tls)
    target = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
    options = [
        ("grpc.default_authority", probe.host),
        ("grpc.ssl_target_name_override", probe.host),
        ("grpc.enable_http_proxy", 0),
        # Each probe opens its own connection: a shared one would hide a gateway that has gone.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if probe.tls:
        roots = None
        if address.ca_file:
            with open(address.ca_file, "rb") as file:  # noqa: PTH123 - a plain path from params
                roots = file.read()
        channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(roots), options)
    else:
        channel = grpc.insecure_channel(target, options)
    with channel:
        call = channel.unary_unary(probe.path, request_serializer=None, response_deserializer=None)
        try:
            got = call(_message(probe), timeout=timeout, metadata=tuple(_token(probe).items()))
        except grpc.RpcError as error:
            code = error.code()
            text = f"{code.name}: {error.details()}"
            late = code is grpc.StatusCode.DEADLINE_EXCEEDED
            return Answer(int(code.value[0]), text, "application/grpc", late=late)
    return Answer(0, "", "application/grpc", bytes(got))


def _message(probe: Probe) -> bytes:
    """Return the request message: nothing by default, ``hex:`` for serialized protobuf."""
    body = probe.body or ""
    try:
        return bytes.fromhex(body[4:]) if body.startswith("hex:") else body.encode()
    except ValueError:
        raise ParamsError(
            f"verify.probes {probe.name}: body is not hexadecimal",
            hint="write a gRPC body as hex: followed by the serialized message",
        ) from None
