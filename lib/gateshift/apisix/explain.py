"""``gateshift explain``: which route APISIX chooses for each request of a file, and why.

Requests are JSON objects, one a line, with ``path`` and optionally ``method, host, headers, args, cookies,
remote_addr, scheme, server_port``; the command's help says what each of them is. The answers keep the order:
``{"winner": <route id or null>}``, the id as it is written in the source. A route without id is named
``arr_<position>``, as APISIX itself names it. ``undecided`` appears only when a filter_func (Lua) comes
before the winner and would have to be run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import click

from gateshift.apisix.model import Finding, Router, Severity
from gateshift.apisix.readers import read_files
from gateshift.apisix.routing import Match, Request, RouteTable, as_written
from gateshift.errors import ConfigurationError, GateshiftError

__all__ = ["explain_command", "parse_request", "run"]

_FLUSH = 1000
_TEXTS = ("method", "host", "path", "remote_addr", "scheme")
_MAPS = ("headers", "args", "cookies")
_KNOWN = frozenset((*_TEXTS, *_MAPS, "server_port"))
_HINT = (
    'write one JSON object a line, for example {"method": "GET", "host": "a.example", "path": "/", '
    '"headers": {"x-version": "2"}}'
)


def parse_request(data: object, where: str) -> Request:
    """Return the request in one parsed line; *where* names it in errors. Unknown keys are ignored."""
    if not isinstance(data, Mapping):
        raise ConfigurationError(f"{where}: a request is a JSON object", hint=_HINT)
    fields: dict[str, Any] = {}
    for key, value in data.items():
        if key not in _KNOWN or value is None:
            continue
        if key in _TEXTS and not isinstance(value, str):
            raise ConfigurationError(f"{where}: {key} is text, this is {value!r}", hint=_HINT)
        if key == "server_port" and (isinstance(value, bool) or not isinstance(value, int)):
            raise ConfigurationError(f"{where}: server_port is a number, this is {value!r}", hint=_HINT)
        fields[key] = _values(key, value, where) if key in _MAPS else value
    if "path" not in fields:
        raise ConfigurationError(f"{where}: path is required", hint=_HINT)
    return Request(**fields)


def _values(key: str, value: object, where: str) -> dict[str, Any]:
    """Return a map of names to values; null is absent, several values are a list."""
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{where}: {key} is an object of names and values", hint=_HINT)
    for name, one in value.items():
        if isinstance(one, Mapping) or (isinstance(one, list) and any(map(_is_nested, one))):
            raise ConfigurationError(
                f"{where}: {key}.{name} is text, or a list of texts, this is {one!r}", hint=_HINT
            )
    return {name: one for name, one in value.items() if one is not None}


def _is_nested(value: object) -> bool:
    return isinstance(value, list | Mapping)


def read_requests(lines: Iterable[str], source: str) -> Iterator[Request]:
    """Parse lines of JSON; empty lines are skipped."""
    loads = json.loads
    for number, line in enumerate(lines, 1):
        if not line or line.isspace():
            continue
        where = f"{source} line {number}"
        try:
            data = loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"{where}: is not JSON: {error}", hint=_HINT) from None
        yield parse_request(data, where)


def as_json(match: Match, ids: Mapping[str, Any], *, why: bool) -> dict[str, Any]:
    """Return the answer line of one match as plain JSON; *ids* gives ids as written."""
    out: dict[str, Any] = {"winner": None if match.winner is None else ids.get(match.winner, match.winner)}
    if match.undecided:
        out["undecided"] = [ids.get(id_, id_) for id_ in match.undecided]
    if why:
        out["candidates"] = [{**t.as_json(), "route": ids.get(t.route, t.route)} for t in match.why]
    return out


def run(
    config_paths: Sequence[str | Path],
    router: str | None,
    requests_path: str | Path,
    why: bool,
    out: IO[str],
    *,
    notes: IO[str] | None = None,
) -> int:
    """Explain every request; write answers to *out* and remarks to *notes*. Return how many requests."""
    configuration = read_files(config_paths)
    table = RouteTable(configuration, Router(router) if router else None)
    ids = {id_: as_written(configuration, id_) for id_ in table.ids}
    if notes is not None:
        if router is None and configuration.router is None:
            notes.write(f"note: router {table.router.value} assumed; name another with --router\n")
        _write_findings(notes, (*configuration.findings, *table.findings))
    plain = {id_: json.dumps({"winner": written}, ensure_ascii=False) + "\n" for id_, written in ids.items()}
    nothing = '{"winner": null}\n'
    source = "standard input" if str(requests_path) == "-" else str(requests_path)
    count = 0
    lines: list[str] = []
    with _open(requests_path) as stream:
        for request in read_requests(_decoded(stream, source), source):
            match = table.match(request, why=why)
            if why or match.undecided:
                lines.append(json.dumps(as_json(match, ids, why=why), ensure_ascii=False) + "\n")
            else:
                lines.append(nothing if match.winner is None else plain[match.winner])
            count += 1
            if len(lines) >= _FLUSH:
                out.writelines(lines)
                lines.clear()
    out.writelines(lines)
    return count


def _open(path: str | Path) -> Any:
    if str(path) == "-":
        return nullcontext(sys.stdin)
    try:
        return Path(path).open(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such requests file", hint="check the path") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror or error}") from None


def _decoded(stream: Iterable[str], source: str) -> Iterator[str]:
    try:
        yield from stream
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigurationError(f"{source}: cannot be read as UTF-8: {error}", hint=_HINT) from None


def _write_findings(notes: IO[str], findings: Sequence[Finding]) -> None:
    for finding in findings:
        if finding.severity is not Severity.INFO:
            notes.write(f"{finding.severity.value}: {finding.origin}: {finding.message}")
            notes.write(f" ({finding.remedy})\n" if finding.remedy else "\n")


@click.command("explain")
@click.option("--config", "config", multiple=True, required=True, help="APISIX configuration; may repeat.")
@click.option(
    "--router",
    type=click.Choice([r.value for r in Router]),
    help="apisix.router.http; default: what the configuration says, else radixtree_host_uri.",
)
@click.option(
    "--requests",
    "requests",
    required=True,
    help="JSON objects, one a line; - is standard input. Their fields are above.",
)
@click.option("--why", is_flag=True, help="Add each candidate and the condition that failed.")
@click.option("--json/--no-json", "_json", default=True, hidden=True, help="Output is always JSON lines.")
def explain_command(
    config: tuple[str, ...], router: str | None, requests: str, why: bool, _json: bool
) -> None:
    """Say which route APISIX chooses for each request, and why.

    A request is a JSON object on a line of its own. Only path is required.

    \b
    path         as APISIX compares it ($uri): percent-decoded, "." and ".."
                 resolved, slashes merged. It is taken as it is: "/a%20b" is
                 not "/a b". What stands behind a "?" is the query string,
                 percent-encoded as sent; it gives args where args is absent.
    method       GET when absent, compared as it is written
    host         with or without a port; else the header Host counts
    headers      names in any case, "-" and "_" alike; several values: a list
    args         decoded; true is an argument without "="; of a list the first
                 value counts
    cookies      beside those of the header Cookie, before which they count
    remote_addr  IPv4 or IPv6, 127.0.0.1 when absent
    scheme, server_port
                 http and 9080 when absent
    """
    try:
        run(config, router, requests, why, sys.stdout, notes=sys.stderr)
    except GateshiftError as error:
        click.echo(f"error: {error}", err=True)
        click.echo(f"hint: {error.hint}", err=True)
        sys.exit(error.exit_code)
