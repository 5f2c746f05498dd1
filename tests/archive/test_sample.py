"""The sample archive in the repository is what a real run left, and still verifies."""

from __future__ import annotations

from pathlib import Path

from gateshift.archive.audit import verify

SAMPLE = Path(__file__).parent.parent.parent / "outputs" / "sample"


def test_the_sample_archive_verifies() -> None:
    (migration,) = [path for path in SAMPLE.iterdir() if path.is_dir()]
    assert verify(migration) == []
    assert (migration / "report.html").is_file()
