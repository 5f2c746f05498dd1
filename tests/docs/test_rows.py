"""The examples of the guide's twelve rows are what the documentation says they become."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateshift.cli.reference import rows, translate_row

FILE = Path(__file__).parents[2] / "docs" / "translation_rows.yaml"
ROWS = rows(FILE)


def test_all_twelve_rows_are_there() -> None:
    assert len(ROWS) == 12


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["row"])
def test_the_row_becomes_what_it_says(row: dict[str, str]) -> None:
    translation = translate_row(row)
    if row.get("may_block") and translation.blockers:
        assert row["row"] in str(translation.blockers[0])  # held back by name, never dropped
        assert not [o for o in translation.objects if o["kind"] == "VirtualService"]
        return
    by_hand = [e.note for e in translation.ledger if str(e.status) == "manual"]
    if row.get("may_be_manual") and by_hand:
        assert row["kind"] in " ".join(by_hand)  # what a person has to write is named
        return
    for kind in {row["kind"], row.get("also", row["kind"])}:
        assert [o for o in translation.files[row["file"]] if o["kind"] == kind], (
            sorted(o["kind"] for o in translation.objects),
            translation.blockers,
        )
