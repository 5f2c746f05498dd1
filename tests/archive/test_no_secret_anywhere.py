"""Canaries: secrets in every dress, pushed into everything a run can write, and looked for in every file."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest

from gateshift.archive.audit import verify
from gateshift.archive.report import write_report
from gateshift.archive.run import execute
from gateshift.migration.journal import read_records
from tests.archive import story
from tests.archive.books import read, write_notebook

pytestmark = pytest.mark.slow

KNOWN = "Canary-9f3/k+secret=Value"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.Q2FuYXJ5U2lnbmF0dXJlMTIz"
KEY_BODY = "MIIEowIBAAKCAQEAcanaryKeyBody0123456789abcdefghijklmnop"
PEM = f"-----BEGIN RSA PRIVATE KEY-----\n{KEY_BODY}\n{KEY_BODY[::-1]}\n-----END RSA PRIVATE KEY-----"
HEADER = "Authorization: Bearer canaryBearerToken0123456789"

FORBIDDEN = (
    *(KNOWN, quote(KNOWN, safe=""), KNOWN.encode().hex(), json.dumps(KNOWN)[1:-1]),
    *(base64.b64encode(KNOWN.encode()).decode(), base64.urlsafe_b64encode(KNOWN.encode()).decode()),
    base64.b64encode(f"x{KNOWN}".encode()).decode()[4:-4],
    *(JWT, JWT.rpartition(".")[2], KEY_BODY, KEY_BODY[::-1]),
    *("canaryBearerToken0123456789", "WNhbmFyeUtleUJvZH"),
)
"""Each form a canary may be found in; none may be in any file."""

LEAK = r"""
import base64, json, os, sys
from pathlib import Path
from IPython.display import HTML, display
from comm import create_comm
encoded = base64.b64encode(admin_key.encode()).decode()
within = base64.b64encode(("x" + admin_key).encode()).decode()
every = [admin_key, "x" + admin_key, encoded, within, JWT, PEM, HEADER]
every += [base64.b64encode(PEM.encode()).decode(), repr(admin_key), json.dumps({"token": admin_key})]
"""
STREAMS = r"""
for one in every:
    print(one, flush=True)
    sys.stderr.write(one + "\n")
    os.write(2, (one + "\n").encode())
    os.system("echo \"$CANARY\" >&2")
"""
DISPLAYS = r"""
for one in every:
    display(HTML(f"<b title='{one}'>{one}</b>"))
    data = {"text/plain": one, "application/json": {"value": one, "password": "canary"}}
    display(data, raw=True, metadata={"m": one})
names = {"_model_name": "TextModel", "_model_module": "controls", "_model_module_version": "2.0.0"}
state = {**names, "value": KNOWN_TEXT}
create_comm(target_name="jupyter.widget", data={"state": state}, metadata={"version": "2"})
every
"""
FILES = r"""
os.environ["GATESHIFT_RUN"] = "50_canary-r1"
from gateshift.judge.model import Sample
from gateshift.migration.journal import Journal
from gateshift.params.model import JudgeParams, StageParams
from gateshift.runbook.samples import KeptSamples
from gateshift.archive.redact import Redactor
run = Path(folder)
journal = Journal.open(run.parent / "journal.jsonl", who="ann", run="50_canary-r1")
journal.redactor.learn([admin_key])
journal.append("run.started", notebook="50_canary")
for one in every:
    journal.append("note.leak", text=one, nested=[{"admin_key": one}], **{one: one})
journal.append("rollback.started", reason=f"{every}", **{"from": 0})
limits = {"error_rate_limit_percent": 1.0, "p95_limit_ms": 9.0}
stage = StageParams.model_validate({"weight_percent": 100, "dwell": "1m", **limits})
kept = KeptSamples(run / "samples.jsonl", stage, JudgeParams(), 0)
for one in every:
    kept.write(Sample.unknown(1.0, journal.redactor.text(one)))
(run / "evidence").mkdir()
for number, one in enumerate(every):
    (run / "evidence" / f"{number}.txt").write_text(journal.redactor.text(one))
journal.close()
"""


def texts(folder: Path) -> dict[str, str]:
    """Return what each file says to whoever reads it: bytes as text, Parquet as its columns."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        text = path.read_bytes().decode("utf-8", "replace")
        if path.suffix == ".parquet":
            text += json.dumps(pq.read_table(path).to_pylist(), default=str)
        elif path.suffix in {".ipynb", ".json"}:
            text += "\n".join(_strings(json.loads(text)))
        found[str(path.relative_to(folder))] = text
    return found


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [s for pair in value.items() for item in pair for s in _strings(item)]
    return [s for item in value for s in _strings(item)] if isinstance(value, list) else []


def test_canaries_get_into_no_file_and_no_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    migration, run = tmp_path / "m", tmp_path / "m" / "50_canary-r1"
    story.write(migration / "journal.jsonl", story.setup())
    monkeypatch.setenv("CANARY", KNOWN)
    named = f"JWT, PEM, HEADER, KNOWN_TEXT = {JWT!r}, {PEM!r}, {HEADER!r}, {KNOWN!r}"
    sources = (named + LEAK, STREAMS, DISPLAYS, FILES, "raise ValueError(f'bad {every}')")
    book = write_notebook(
        tmp_path / "50_canary.ipynb", *sources, parameters="admin_key = None\nfolder = None"
    )
    said: list[str] = []
    # The notebook gets the value itself, as a careless caller would hand it over.
    parameters = {"admin_key": KNOWN, "folder": str(run), "headers": {"Authorization": HEADER[15:]}}
    outcome = execute(book, run / "50_canary.ipynb", parameters, secrets=[KNOWN], on_output=said.append)
    assert outcome.exit_code == 1
    assert "bad " in str(outcome.error)
    write_report(migration)
    assert verify(migration) == []
    outputs = capfd.readouterr()
    found = texts(migration)
    logs = {
        "the log": "".join(said),
        "stdout": outputs.out,
        "stderr": outputs.err,
        "error": str(outcome.error),
    }
    names = set(found)
    for wanted in (
        *("journal.jsonl", "report.html", "50_canary-r1/manifest.json", "50_canary-r1/50_canary.ipynb"),
        *("50_canary-r1/metrics.parquet", "50_canary-r1/samples.jsonl", "50_canary-r1/evidence/5.txt"),
        "html/50_canary-r1--50_canary.html",
    ):
        assert wanted in names, sorted(names)
    assert "widgets" in read(outcome.path).metadata, "the widget's state was archived"
    assert "[redacted]" in logs["the log"]
    assert len(read_records(migration / "journal.jsonl")) > 20
    leaks = [
        f"{canary[:12]}... in {name}"
        for name, text in {**found, **logs}.items()
        for canary in FORBIDDEN
        if canary in text
    ]
    assert leaks == []


def test_a_kernel_that_cannot_start_says_so_without_secrets(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom gateshift.archive.redact import Redactor\n"
        "from gateshift.archive.relay import Relay\n"
        "relay = Relay(Redactor([sys.argv[1]]), 1)\n"
        "key = sys.argv[2].splitlines(keepends=True)\n"
        "for part in (sys.argv[1][:7], sys.argv[1][7:] + '\\n', *key, '\\nend\\n'):\n"
        "    os.write(relay.writer, part.encode())\n"
        "relay.end()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, KNOWN, PEM], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == ["[redacted]", "-----BEGIN PRIVATE KEY----- [redacted]", "end"]
