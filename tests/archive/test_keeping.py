"""What a rewritten archive cannot rewrite: signatures, the head in the cluster, the locked copy in S3."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from moto import mock_aws

from gateshift.archive import audit
from gateshift.archive.commands import audit_group
from gateshift.archive.copying import copy_to_s3, keep_safe
from gateshift.archive.parquet import write_metrics
from gateshift.archive.signing import sign
from gateshift.errors import ExternalError, InputError
from gateshift.migration.guard import anchor_of
from gateshift.migration.journal import Journal, read_records
from gateshift.migration.state import fold
from gateshift.params.model import ArchiveParams
from gateshift.plan import canonical_json
from tests.archive import story


@pytest.fixture
def migration(tmp_path: Path) -> Path:
    story.write(tmp_path / "demo" / "journal.jsonl", story.rolled_back())
    return tmp_path / "demo"


def new_key(path: Path) -> Path:
    tool = shutil.which("ssh-keygen")
    if tool is None:
        pytest.skip("ssh-keygen is not installed")
    subprocess.run([tool, "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@pytest.fixture
def ssh_key(tmp_path: Path) -> Path:
    return new_key(tmp_path / "id")


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with mock_aws():
        yield


def signers(path: Path, key: Path) -> Path:
    path.write_text(f"ann@ops {key.with_suffix('.pub').read_text()}")
    return path


def test_ssh_signature_holds_and_tells_whose_it_is(migration: Path, ssh_key: Path, tmp_path: Path) -> None:
    sign(migration, str(ssh_key))
    allowed = signers(tmp_path / "allowed", ssh_key)
    assert audit.verify(migration, signers=allowed) == []
    stranger = new_key(tmp_path / "other")
    problems = audit.verify(migration, signers=signers(tmp_path / "others", stranger))
    assert [p.what for p in problems] == ["is by none of the signers in others"]


def test_signature_shows_an_archive_that_was_made_anew(
    migration: Path, ssh_key: Path, tmp_path: Path
) -> None:
    sign(migration, str(ssh_key))
    forged = tmp_path / "forged" / "demo"
    story.write(forged / "journal.jsonl", story.promoted())
    with Journal.open(forged / "journal.jsonl", who="eve", run="r") as journal:
        files = {p.name: audit.file_digest(p) for p in (migration / "signatures").iterdir()}
        journal.append("note.signed", files=files, signed=3)
    (forged / "signatures").mkdir()
    for path in (migration / "signatures").iterdir():
        (forged / "signatures" / path.name).write_bytes(path.read_bytes())
    assert any("that the journal does not have" in p.what for p in audit.verify(forged))
    # Without the signatures of before, nobody who asks for one is satisfied.
    statement = next((forged / "signatures").glob("*.json"))
    said = {**json.loads(statement.read_text()), "hash": read_records(forged / "journal.jsonl")[-1].hash}
    statement.write_text(json.dumps(said))
    assert audit.verify(forged)


def test_every_edit_of_a_signature_is_found(migration: Path, ssh_key: Path) -> None:
    sign(migration, str(ssh_key))
    for path in (migration / "signatures").iterdir():
        raw = path.read_bytes()
        for place in range(0, len(raw), 7):
            path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
            assert any(p.path == path for p in audit.verify(migration)), place
        path.unlink()
        assert any(p.path == path and "missing" in p.what for p in audit.verify(migration))
        path.write_bytes(raw)
    assert audit.verify(migration) == []


@pytest.mark.usefixtures("aws")
def test_kms_key_signs_and_is_asked_again(migration: Path) -> None:
    made = boto3.client("kms").create_key(KeyUsage="SIGN_VERIFY", KeySpec="ECC_NIST_P256")
    sign(migration, made["KeyMetadata"]["Arn"])
    assert audit.verify(migration, ask_kms=True) == []
    other = boto3.client("kms").create_key(KeyUsage="SIGN_VERIFY", KeySpec="ECC_NIST_P256")
    statement = next((migration / "signatures").glob("*.json"))
    signature = statement.with_suffix(".sig")
    copied = migration.parent / "second" / "demo"
    story.write(copied / "journal.jsonl", story.rolled_back())
    sign(copied, other["KeyMetadata"]["Arn"])
    next((copied / "signatures").glob("*.sig")).write_bytes(signature.read_bytes())
    assert audit.verify(copied, ask_kms=True)
    with pytest.raises(ExternalError, match="KMS did not sign"):
        sign(migration, "arn:aws:kms:us-east-1:123456789012:key/none")


@pytest.mark.usefixtures("aws")
def test_a_forged_archive_signed_by_a_kms_key_of_its_own_is_found_by_naming_the_key(migration: Path) -> None:
    ours, theirs = (
        boto3.client("kms").create_key(KeyUsage="SIGN_VERIFY", KeySpec="ECC_NIST_P256")["KeyMetadata"]["Arn"]
        for _ in range(2)
    )
    sign(migration, theirs)
    assert audit.verify(migration, ask_kms=True) == [], "KMS answers for whatever key is named"
    (problem,) = audit.verify(migration, ask_kms=True, kms_key=ours)
    assert problem.path.suffix == ".sig"
    assert audit.verify(migration, ask_kms=True, kms_key=theirs) == []
    done = CliRunner().invoke(audit_group, ["verify", str(migration), "--kms-key", ours])
    assert (done.exit_code, "CHANGED" in done.output) == (1, True)
    assert CliRunner().invoke(audit_group, ["verify", str(migration), "--kms-key", theirs]).exit_code == 0
    assert CliRunner().invoke(audit_group, ["verify", str(migration), "--kms-key", ""]).exit_code == 2


def test_cosign_is_called_as_its_manual_says(
    migration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A stand-in on PATH that keeps cosign's command line: signs with a checksum, verifies by it.
    tool = tmp_path / "bin" / "cosign"
    tool.parent.mkdir()
    tool.write_text(
        "#!/bin/sh\nsum=$(cat | sha256sum | cut -c1-64 | base64 -w0)\n"
        'case "$1 $*" in\n'
        '"sign-blob sign-blob --yes --key cosign.key -") echo "$sum";;\n'
        '"verify-blob verify-blob --key cosign.pub --signature "*" -") [ "$sum" = "$(cat $5)" ];;\n'
        "*) echo bad arguments: $* >&2; exit 9;;\nesac\n"
    )
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    sign(migration, "cosign.key")
    assert audit.verify(migration, key="cosign.pub") == []
    assert [p.what for p in audit.verify(migration, key="wrong.pub")] == ["does not belong to its statement"]


def test_nothing_to_sign_with_is_bad_input(migration: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such key"):
        sign(migration, str(tmp_path / "none"))
    with pytest.raises(InputError, match="cosign is not installed"):
        sign(migration, "gcpkms://projects/p/key")
    assert not (migration / "signatures").exists()
    failed = keep_safe(migration, ArchiveParams(sign_key=str(tmp_path / "none")))
    assert "no such key" in failed[0], "a run's outcome does not depend on its signature"


def test_a_disk_that_takes_no_signature_does_not_change_a_runs_outcome(
    migration: Path, ssh_key: Path
) -> None:
    (migration / "signatures").write_text("no folder")
    (failed,) = keep_safe(migration, ArchiveParams(sign_key=str(ssh_key)))
    assert failed.startswith("not signed: ")


@pytest.mark.usefixtures("aws")
def test_copy_in_s3_is_locked_whole_and_made_once(migration: Path) -> None:
    client = boto3.client("s3")
    client.create_bucket(Bucket="kept", ObjectLockEnabledForBucket=True)
    done = CliRunner().invoke(audit_group, ["copy", str(migration), "--bucket", "kept", "--prefix", "audit"])
    assert done.exit_code == 0, done.output
    keys = {o["Key"] for o in client.list_objects_v2(Bucket="kept")["Contents"]}
    assert keys == {"audit/demo/journal.jsonl", "audit/demo/journal.head"}
    got = client.get_object(Bucket="kept", Key="audit/demo/journal.jsonl")
    assert got["Body"].read() == (migration / "journal.jsonl").read_bytes()
    assert got["ObjectLockMode"] == "COMPLIANCE"
    assert copy_to_s3(migration, "kept", prefix="audit") == [], "what is there already is left alone"
    with Journal.open(migration / "journal.jsonl", who="ann", run="r2") as journal:
        journal.append("note.more")
    assert len(copy_to_s3(migration, "kept", prefix="audit")) == 2


@pytest.mark.usefixtures("aws")
def test_bucket_without_object_lock_is_refused(migration: Path) -> None:
    boto3.client("s3").create_bucket(Bucket="open")
    with pytest.raises(InputError, match="has no object lock"):
        copy_to_s3(migration, "open")
    with pytest.raises(ExternalError, match="was not copied"):
        copy_to_s3(migration, "nowhere")
    assert boto3.client("s3").list_objects_v2(Bucket="open")["KeyCount"] == 0


def test_head_in_the_cluster_shows_a_replaced_archive(migration: Path, tmp_path: Path) -> None:
    records = read_records(migration / "journal.jsonl")
    anchor = anchor_of(records[-1], fold(records))
    assert anchor is not None
    assert audit.verify(migration, anchors={"demo": anchor}) == []
    other = tmp_path / "other" / "demo"
    story.write(other / "journal.jsonl", story.promoted())
    assert audit.verify(other) == []
    (problem,) = audit.verify(other, anchors={"demo": anchor})
    assert "the archive was replaced" in problem.what


def test_samples_as_parquet(tmp_path: Path) -> None:
    side = {"requests": 10.0, "errors": 1.0, "buckets": [[10.0, 5.0], ["+Inf", 10.0]], "missing": None}
    lack = {
        "requests": None,
        "errors": None,
        "buckets": None,
        "missing": {"kind": "scrape-gap", "detail": "x"},
    }
    lines = [
        {"stage": {}, "judge": {}, "stage_index": 1},
        {"sample": {"time": 1.5, "canary": {**side, "source": "i"}, "baseline": {**lack, "source": "a"}}},
    ]
    log = tmp_path / "samples.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"sample": {"ti')
    target = write_metrics(log)
    assert target is not None
    first, second = pq.read_table(target).to_pylist()
    assert (first["gateway"], first["stage"], first["requests"], first["errors"]) == ("istio", 2, 10.0, 1.0)
    assert first["buckets"][1] == {"le": float("inf"), "count": 10.0}
    assert (second["gateway"], second["requests"], second["missing"]) == ("apisix", None, "scrape-gap")
    assert first["time"].timestamp() == 1.5
    log.write_text(json.dumps(lines[0]) + "\n")
    assert write_metrics(log) is None


def forge(migration: Path, statement: dict[str, object], *, name: str, signature: bool) -> None:
    """Lay down a statement that nobody signed and have the journal know it, as who rewrites all of it can."""
    folder = migration / "signatures"
    folder.mkdir()
    head = read_records(migration / "journal.jsonl")[-1]
    said = {"migration": migration.name, "seq": head.seq, "hash": head.hash, **statement}
    (folder / f"{head.seq:06d}-{name}.json").write_text(canonical_json(said) + "\n")
    if signature:
        (folder / f"{head.seq:06d}-{name}.sig").write_text("anything\n")
    files = {p.name: audit.file_digest(p) for p in folder.iterdir()}
    with Journal.open(migration / "journal.jsonl", who="eve", run="sign") as journal:
        journal.append("note.signed", files=files, signed=head.seq)


def test_a_statement_that_nobody_signed_is_no_signature(
    migration: Path, ssh_key: Path, tmp_path: Path
) -> None:
    forge(migration, {"signer": "ssh"}, name="ssh", signature=False)
    found = audit.verify(migration, signers=signers(tmp_path / "allowed", ssh_key))
    assert [p.what for p in found] == ["has no signature that the journal knows"]


def test_a_signature_of_another_kind_does_not_stand_for_the_one_asked_for(
    migration: Path, ssh_key: Path, tmp_path: Path
) -> None:
    # By cosign, which is not asked, under a name that says SSH, which is.
    forge(migration, {"signer": "cosign"}, name="ssh", signature=True)
    found = audit.verify(migration, signers=signers(tmp_path / "allowed", ssh_key))
    assert [p.what for p in found] == ["says that it is signature 000032 by cosign"]


def test_what_no_signature_covers_is_a_note(migration: Path, ssh_key: Path, tmp_path: Path) -> None:
    def unsigned(allowed: Path | None) -> list[str]:
        return [p.what for p in audit.survey(migration, signers=allowed) if p.note and "signature" in p.what]

    sign(migration, str(ssh_key))
    allowed = signers(tmp_path / "allowed", ssh_key)
    assert unsigned(allowed) == []
    with Journal.open(migration / "journal.jsonl", who="eve", run="r") as journal:
        journal.append("note.later")
    assert unsigned(None) == []
    assert unsigned(allowed) == ["records 34 to 34 are under no signature yet"]
    sign(migration, str(ssh_key))
    assert unsigned(allowed) == []
