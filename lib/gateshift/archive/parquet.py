"""The samples behind each verdict as Parquet, for pandas or DuckDB: one row a gateway and moment.

``samples.jsonl`` stays beside it: it is what a run appends to and what a replay reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateshift.archive.files import atomic_write
from gateshift.plan import parse_json

__all__ = ["METRICS", "write_metrics"]

METRICS = "metrics.parquet"


def write_metrics(recording: Path) -> Path | None:
    """Write the samples of *recording* (``samples.jsonl``) as ``metrics.parquet`` beside it.

    Columns: ``time`` (UTC), ``stage`` (from 1), ``gateway`` (istio, apisix), ``requests`` and ``errors``
    (counts since the sample before; null when ``missing`` says why), ``missing``, ``detail``, ``source`` and
    ``buckets`` (upper edges in milliseconds with counts). Returns None when there is no sample.
    """
    rows = list(_rows(recording.read_text(encoding="utf-8").splitlines()))
    if not rows:
        return None
    # Only a run that measured something waits for pyarrow.
    import pyarrow as pa  # noqa: PLC0415 - see above
    import pyarrow.parquet as pq  # noqa: PLC0415 - see above

    edge = pa.struct([("le", pa.float64()), ("count", pa.float64())])
    schema = pa.schema(
        [
            ("time", pa.timestamp("ms", tz="UTC")),
            ("stage", pa.int16()),
            ("gateway", pa.string()),
            ("requests", pa.float64()),
            ("errors", pa.float64()),
            ("missing", pa.string()),
            ("detail", pa.string()),
            ("covered", pa.float64()),
            ("source", pa.string()),
            ("buckets", pa.list_(edge)),
        ]
    )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    target = recording.with_name(METRICS)
    atomic_write(target, sink.getvalue().to_pybytes())
    return target


def _rows(lines: list[str]) -> Any:
    stage = 0
    for line in lines:
        try:
            data = parse_json(line)
        except ValueError:
            continue  # the last line of a run that died while writing it
        if "stage_index" in data:
            stage = int(data["stage_index"]) + 1
        elif "sample" in data:
            sample = data["sample"]
            for gateway, side in (("istio", sample["canary"]), ("apisix", sample["baseline"])):
                missing = side["missing"] or {}
                buckets = side["buckets"] or []
                yield {
                    "time": int(float(sample["time"]) * 1000),
                    "stage": stage,
                    "gateway": gateway,
                    "requests": side["requests"],
                    "errors": side["errors"],
                    "missing": missing.get("kind"),
                    "detail": missing.get("detail"),
                    "covered": side.get("covered"),
                    "source": side["source"],
                    "buckets": [{"le": float(le), "count": n} for le, n in buckets],
                }
