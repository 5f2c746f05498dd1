"""Samples on record and verdicts recomputed from them, bit for bit.

``samples.jsonl`` holds a header line (stage and judge params, stage index, the old gateway's intervals of
before the stage), then one sample a line. A verdict
in the journal names the digest of the samples it saw; replaying finds those samples again, judges, and
compares the canonical JSON of both verdicts. Parquet with the same lines in a column ``line`` reads as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gateshift.errors import InputError
from gateshift.judge.model import Sample, Side, Verdict
from gateshift.judge.verdict import EDITION, judge
from gateshift.migration.records import journals_below
from gateshift.params.model import JudgeParams, StageParams
from gateshift.plan import canonical_json, digest_of

__all__ = ["Recording", "Replayed", "SampleLog", "read_recording", "replay", "write_parquet"]

_DURATIONS = ("dwell", "missing_data_allowance", "hold_timeout")


@dataclass(frozen=True, slots=True)
class Recording:
    """What one observation recorded."""

    path: Path
    stage: StageParams
    params: JudgeParams
    stage_index: int
    samples: tuple[Sample, ...]
    reference: tuple[Side, ...] = ()
    verdicts: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Replayed:
    """A recorded verdict beside the recomputed one; ``same`` compares canonical JSON.

    Without a recomputed one *reason* says why it could not be had.
    """

    path: Path
    stage_index: int
    recorded: Mapping[str, Any]
    recomputed: Verdict | None
    reason: str = ""
    other_edition: bool = False

    @property
    def same(self) -> bool:
        """Whether decision, reasons and evidence agree to the last character."""
        if self.recomputed is None:
            return False
        wanted = {key: self.recorded.get(key) for key in ("decision", "reasons", "evidence")}
        return canonical_json(wanted) == canonical_json(self.recomputed.as_json())


class SampleLog:
    """Appends samples (and verdicts) as JSON lines, each flushed to disk before the next is judged."""

    def __init__(
        self,
        path: Path,
        stage: StageParams,
        params: JudgeParams,
        stage_index: int,
        reference: Sequence[Side] = (),
    ) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._line(
            {
                "stage": stage.model_dump(mode="json"),
                "judge": params.model_dump(mode="json"),
                "stage_index": stage_index,
                "reference": [side.as_json() for side in reference],
            }
        )

    def write(self, sample: Sample) -> None:
        """Append one sample."""
        self._line({"sample": sample.as_json()})

    def verdict(self, verdict: Verdict) -> None:
        """Append a verdict, so that the file can be replayed without the journal."""
        self._line({"verdict": verdict.as_json()})

    def _line(self, data: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(canonical_json(data) + "\n")
            file.flush()
            os.fsync(file.fileno())


def write_parquet(recording: Path, target: Path) -> None:
    """Store the lines of a recording as Parquet."""
    lines = recording.read_text(encoding="utf-8").splitlines()
    pq.write_table(pa.table({"line": lines}), target)


def _lines(path: Path) -> list[str]:
    try:
        if path.suffix == ".parquet":
            return [str(line) for line in pq.read_table(path, columns=["line"])["line"].to_pylist()]
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError, KeyError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def read_recording(path: Path) -> list[Recording]:
    """Read a recording; a file may hold several observations, each begun by its header.

    A torn last line (the process died while writing) is left out; damage elsewhere is an error.
    """
    lines = [line for line in _lines(path) if line.strip()]
    if lines and not _is_header(lines[0]):
        raise InputError(
            f"{path}: line 1 is not part of a recording, which begins with the params of a stage",
            hint="name a samples.jsonl, or the migration's folder",
        )
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            data = json.loads(line)
            if "stage" in data:
                found.append({"head": data, "samples": [], "verdicts": []})
            elif "sample" in data:
                found[-1]["samples"].append(Sample.from_json(data["sample"]))
            else:
                found[-1]["verdicts"].append(data["verdict"])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            if number == len(lines):
                break
            raise InputError(f"{path}: line {number} is not part of a recording: {error}") from None
    return [_recording(path, item) for item in found]


def _is_header(line: str) -> bool:
    try:
        found = json.loads(line)
    except ValueError:
        return False
    return isinstance(found, dict) and "stage" in found


def _recording(path: Path, item: Mapping[str, Any]) -> Recording:
    head = item["head"]
    try:
        return Recording(
            path,
            StageParams.model_validate(_durations(head["stage"])),
            JudgeParams.model_validate(_durations(head["judge"])),
            int(head["stage_index"]),
            tuple(item["samples"]),
            tuple(Side.from_json(side) for side in head.get("reference", ())),
            tuple(item["verdicts"]),
        )
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: the header does not fit this version: {error}") from None


def _durations(data: Mapping[str, Any]) -> dict[str, Any]:
    """Durations are recorded as seconds; the params model wants them with their unit."""
    return {key: f"{value!r}s" if key in _DURATIONS else value for key, value in data.items()}


def replay(path: str | Path) -> tuple[Replayed, ...]:
    """Recompute every verdict of *path*: a recording, or a folder (an archive or a migration's folder)."""
    path = Path(path)
    files = (
        [path] if path.is_file() else sorted([*path.rglob("samples.jsonl"), *path.rglob("*samples.parquet")])
    )
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    if not files:
        raise InputError(f"{path}: no recorded samples (samples.jsonl) below it")
    recordings = [recording for file in files for recording in read_recording(file)]
    if path.is_file() and not recordings:
        raise InputError(
            f"{path}: no stage is recorded in it", hint="name a samples.jsonl, or the migration's folder"
        )
    own = [(rec, verdict) for rec in recordings for verdict in rec.verdicts]
    results = [_one([rec], verdict, rec.path) for rec, verdict in own]
    known = {canonical_json(verdict) for _, verdict in own}
    for journal in [] if path.is_file() else journals_below(path):
        for verdict in _journal_verdicts(journal):
            wanted = {key: verdict.get(key) for key in ("decision", "reasons", "evidence")}
            if canonical_json(wanted) not in known:
                results.append(_one(recordings, wanted, journal))
    return tuple(results)


def _journal_verdicts(path: Path) -> Iterable[Mapping[str, Any]]:
    for line in _lines(path):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the audit names damage of the journal; here it only means one verdict less
        if isinstance(record, dict) and record.get("kind") == "verdict":
            yield record.get("data", {})


def _one(recordings: Sequence[Recording], verdict: Mapping[str, Any], path: Path) -> Replayed:
    inputs = (verdict.get("evidence") or {}).get("inputs")
    if not isinstance(inputs, Mapping):
        return Replayed(path, -1, verdict, None, "the verdict does not say which samples it saw")
    count, index = int(inputs["samples"]), int(inputs["stage_index"])
    edition = inputs.get("judge", 1)
    if edition != EDITION:
        reason = (
            f"reached by edition {edition} of the judge, this version has edition {EDITION}: "
            "replay it with the version of gateshift that manifest.json names"
        )
        return Replayed(path, index, verdict, None, reason, other_edition=True)
    for recording in recordings:
        if recording.stage_index != index or len(recording.samples) < count:
            continue
        history = recording.samples[:count]
        if digest_of([sample.as_json() for sample in history]) != inputs["samples_digest"]:
            continue
        again = judge(
            history,
            recording.stage,
            recording.params,
            stage_index=index,
            stages=int(inputs["stages"]),
            started=inputs["started"],
            now=inputs["now"],
            reference=recording.reference,
            attempt=inputs.get("attempt"),
        )
        return Replayed(recording.path, index, verdict, again)
    return Replayed(
        path, index, verdict, None, f"no recorded samples have the digest {inputs['samples_digest']}"
    )
