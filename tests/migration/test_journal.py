from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from gateshift.archive.audit import verify
from gateshift.errors import JournalError, LockHeld, Unwritable
from gateshift.migration.journal import Journal
from gateshift.migration.lock import LocalLock
from gateshift.migration.records import head_path, read_records
from gateshift.migration.state import Phase, fold
from tests.archive import story


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return tmp_path / "m" / "journal.jsonl"


def journal(book: Path, run: str = "r1") -> Journal:
    return Journal.open(book, who="ann@ops", run=run)


def test_records_are_read_back_as_written(book: Path) -> None:
    story.write(book, story.promoted())
    records = read_records(book)
    assert [r.seq for r in records] == list(range(1, len(records) + 1))
    assert fold(records).weight_percent == 100
    assert records[0].time.endswith("+00:00")


def test_two_writers_share_one_chain(book: Path) -> None:
    first, second = journal(book), journal(book, "r2")
    first.append("migration.opened", params_digest="x")
    second.append("note.b", n=1)
    first.append("note.a", n=2)
    assert [r.run for r in second.records] == ["r1", "r2", "r1"]
    assert verify(book.parent) == []


def test_processes_that_write_at_once_lose_nothing(book: Path) -> None:
    journal(book).append("migration.opened", params_digest="x")
    code = (
        "import sys; from gateshift.migration.journal import Journal\n"
        "j = Journal.open(sys.argv[1], who='w', run=sys.argv[2])\n"
        "for i in range(40): j.append('note.n', i=i)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(book), f"w{n}"]) for n in range(3)]
    assert [w.wait(timeout=120) for w in writers] == [0, 0, 0]
    records = read_records(book)
    assert len(records) == 121
    for run in ("w0", "w1", "w2"):
        assert [r.data["i"] for r in records if r.run == run] == list(range(40))


@pytest.mark.parametrize("cut", [1, 17, 120])
def test_torn_last_line_is_repaired_and_said(book: Path, cut: int) -> None:
    story.write(book, story.setup())
    before = read_records(book)
    line = before[-1].line()
    head_path(book).write_bytes(b"")  # as after a power cut: the head was never flushed
    raw = book.read_bytes()
    book.write_bytes(raw + line[:cut])
    with journal(book, "r2") as repaired:
        assert "torn" in repaired.repaired
        assert repaired.records[-1].kind == "journal.repaired"
        assert repaired.records[-1].data["dropped_bytes"] == cut
        assert repaired.records[: len(before)] == before
    assert verify(book.parent) == []


def test_cutting_a_written_record_is_not_repaired_away(book: Path) -> None:
    story.write(book, story.setup())
    os.truncate(book, book.stat().st_size - 5)
    with pytest.raises(JournalError, match="cut after it had been written"):
        journal(book)


def test_missing_end_is_noticed_when_opened(book: Path) -> None:
    story.write(book, story.setup())
    lines = book.read_bytes().splitlines(keepends=True)
    book.write_bytes(b"".join(lines[:-2]))
    with pytest.raises(JournalError, match="missing at its end"):
        journal(book)


def test_missing_head_is_noticed(book: Path) -> None:
    story.write(book, story.setup())
    head_path(book).unlink()
    with pytest.raises(JournalError, match="head is missing"):
        journal(book)


def test_every_single_byte_edit_is_found(book: Path) -> None:
    story.write(book, story.rolled_back())
    raw = book.read_bytes()
    chance = random.Random(7)  # noqa: S311 - a seed, not a secret
    for _ in range(1500):
        place = chance.randrange(len(raw))
        changed = bytearray(raw)
        changed[place] = (changed[place] + chance.randrange(1, 256)) % 256
        book.write_bytes(bytes(changed))
        problems = verify(book.parent)
        assert problems, f"byte {place} changed from {raw[place]} to {changed[place]} unnoticed"
        assert "journal" in problems[0].path.name


def test_deleted_swapped_or_repeated_records_are_found(book: Path) -> None:
    story.write(book, story.rolled_back())
    lines = book.read_bytes().splitlines(keepends=True)
    for index in range(len(lines) - 1):
        for tampered in (
            lines[:index] + lines[index + 1 :],
            [*lines[:index], lines[index + 1], lines[index], *lines[index + 2 :]],
            lines[: index + 1] + lines[index:],
            lines[: index + 1],
        ):
            book.write_bytes(b"".join(tampered))
            assert verify(book.parent)


def test_illegal_transition_leaves_the_file_untouched(book: Path) -> None:
    story.write(book, story.setup())
    raw = book.read_bytes()
    with journal(book) as open_book, pytest.raises(JournalError, match="stage 3 is not due"):
        open_book.append("stage.entered", stage=3, weight=75)
    assert book.read_bytes() == raw


def test_secrets_do_not_reach_the_file(book: Path) -> None:
    with journal(book) as open_book:
        open_book.redactor.learn(["hunter2-hunter2"])
        open_book.append("migration.opened", params_digest="x")
        record = open_book.append("note.x", text="key is hunter2-hunter2", admin_key="abcdef123456")
    text = book.read_text()
    assert "hunter2" not in text
    assert "abcdef123456" not in text
    assert record.data["text"] == "key is [redacted]"


def test_disk_full_writes_nothing_and_says_so(book: Path) -> None:
    code = (
        "import resource, signal, sys; from gateshift.migration.journal import Journal\n"
        "from gateshift.errors import JournalError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "j = Journal.open(sys.argv[1], who='w', run='r')\n"
        "j.append('migration.opened', params_digest='x')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "n = 0\n"
        "try:\n"
        "    while True: j.append('note.n', text='x' * 100); n += 1\n"
        "except JournalError as error: print(n, error, error.hint)\n"
        "assert len(j.records) == n + 1"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(book)], capture_output=True, text=True, timeout=120, check=True
    )
    count = int(done.stdout.split()[0])
    assert "cannot be written" in done.stdout
    assert "free disk space" in done.stdout
    assert len(read_records(book)) == count + 1
    assert book.read_bytes().endswith(b"\n")


def test_read_only_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("a file where a folder should be")
    with pytest.raises(JournalError, match="cannot be written"):
        journal(tmp_path / "m" / "journal.jsonl")


def test_clock_that_jumps_back_breaks_nothing(book: Path) -> None:
    times = iter([2000.0, 1000.0, 1500.0])
    with Journal.open(book, who="w", run="r", clock=lambda: next(times)) as open_book:
        open_book.append("migration.opened", params_digest="x")
        open_book.append("note.x")
        open_book.append("note.x")
        assert [r.unix for r in open_book.records] == [2000.0, 1000.0, 1500.0]
        monos = [r.mono for r in open_book.records]
    assert monos == sorted(monos)
    assert verify(book.parent) == []


def test_stale_holder_cannot_write(book: Path, tmp_path: Path) -> None:
    old, new = LocalLock(tmp_path / "lock1"), LocalLock(tmp_path / "lock2")
    with old, new, journal(book) as first, journal(book, "r2") as second:
        first.hold(old)
        first.append("migration.opened", params_digest="x")
        second.hold(new)
        raw = book.read_bytes()
        with pytest.raises(LockHeld, match="was not written"):
            first.append("preflight.done", ok=True)
        assert book.read_bytes() == raw
        second.append("preflight.done", ok=True)
        assert second.state.phase is Phase.PREFLIGHTED
        assert second.state.token == 2


def test_what_is_no_text_does_not_keep_a_record_away(book: Path) -> None:
    with journal(book) as opened:
        opened.append("note.error", text="cannot read \udcff\udcfe.pem")
    assert read_records(book)[-1].data["text"] == "cannot read ??.pem"


@pytest.mark.parametrize("removed", [True, False])
def test_a_journal_that_was_replaced_below_its_writer_is_not_written_on(
    book: Path, removed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    story.write(book, story.setup())
    with journal(book) as opened:
        raw = book.read_bytes()
        book.unlink()
        if not removed:
            book.write_bytes(raw)
        with pytest.raises(Unwritable, match="replaced or removed"):
            opened.append("note.forward")
        # The way back goes on, and says what is not on record.
        opened.append("rollback.started", **{"reason": "errors", "from": 0})
        assert "NOT IN THE JOURNAL" in capsys.readouterr().err
    assert book.exists() is not removed


@pytest.mark.parametrize("known", [False, True])
def test_a_newest_record_with_a_block_missing_is_torn_unless_the_head_names_it(
    book: Path, known: bool
) -> None:
    story.write(book, story.setup())
    before, head = book.read_bytes(), head_path(book).read_bytes()
    with journal(book) as opened:
        opened.append("note.long", text="x" * 9000)
    if not known:
        head_path(book).write_bytes(head)  # the power failed before the record was acknowledged
    line = book.read_bytes()[len(before) :]
    book.write_bytes(before + line[:4096] + b"\0" * 4096 + line[8192:])
    assert any("torn" in p.what for p in verify(book.parent))
    assert len(read_records(book)) == len(before.splitlines())
    if known:
        with pytest.raises(JournalError, match="cut after it had been written"):
            journal(book)
        return
    with journal(book) as opened:
        assert "was torn" in opened.repaired
        assert opened.records[-1].kind == "journal.repaired"
    assert verify(book.parent) == []
