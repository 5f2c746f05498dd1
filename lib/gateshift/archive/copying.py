"""A copy of the archive in S3 under object lock: until its date nobody, not even its owner, can change it."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateshift.archive.layout import evidence
from gateshift.archive.signing import sign
from gateshift.errors import ExternalError, GateshiftError, InputError

if TYPE_CHECKING:
    from gateshift.params.model import ArchiveParams

__all__ = ["copy_to_s3", "keep_safe"]


def keep_safe(migration: Path, params: ArchiveParams) -> list[str]:
    """Sign and copy *migration* after a run, as *params* ask; return what did not work.

    The run itself has ended and its outcome stands: a bucket out of reach must not turn it into a failure.
    """
    failed: list[str] = []
    if not (migration / "journal.jsonl").exists():
        return failed
    try:
        if params.sign_key:
            sign(migration, params.sign_key)
    except (GateshiftError, OSError) as error:
        failed.append(f"not signed: {error}")
    try:
        if params.s3_bucket:
            days = max(1, round(params.s3_retain / 86400))
            copy_to_s3(
                migration, params.s3_bucket, prefix=params.s3_prefix, retain_days=days, mode=params.s3_mode
            )
    except GateshiftError as error:
        failed.append(str(error))
    except OSError as error:
        failed.append(f"the archive was not copied: {error}")
    return failed


def copy_to_s3(
    migration: Path,
    bucket: str,
    *,
    prefix: str = "",
    retain_days: int = 365,
    mode: str = "COMPLIANCE",
    endpoint_url: str | None = None,
) -> list[str]:
    """Copy what is new in *migration* to *bucket*, locked for *retain_days*; return the keys written.

    The bucket must have object lock; each upload carries its SHA-256, which S3 checks. Raises
    :class:`~gateshift.errors.InputError` for a bucket without, :class:`~gateshift.errors.ExternalError` when
    S3 refuses.
    """
    import boto3  # noqa: PLC0415 - only who copies waits for it
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - as boto3

    until = datetime.now(UTC) + timedelta(days=retain_days)
    written = []
    try:
        client = boto3.client("s3", endpoint_url=endpoint_url)
        _need_lock(client, bucket)
        for path in evidence(migration):
            body = path.read_bytes()
            digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
            inside = f"{migration.name}/{path.relative_to(migration)}"
            key = f"{prefix.strip('/')}/{inside}".lstrip("/")
            if _there(client, bucket, key) == digest:
                continue
            client.put_object(
                Bucket=bucket,
                Key=key,
                Body=body,
                ChecksumAlgorithm="SHA256",  # without it S3 refuses an object with a lock
                ChecksumSHA256=digest,
                Metadata={"sha256": digest},
                ObjectLockMode=mode,
                ObjectLockRetainUntilDate=until,
            )
            written.append(key)
    except (BotoCoreError, ClientError) as error:
        raise ExternalError(
            f"the archive was not copied to s3://{bucket}: {error}",
            hint="check the bucket's name and the permissions s3:PutObject, s3:PutObjectRetention",
        ) from None
    return written


def _need_lock(client: Any, bucket: str) -> None:
    from botocore.exceptions import ClientError  # noqa: PLC0415 - as boto3

    try:
        found = client.get_object_lock_configuration(Bucket=bucket)["ObjectLockConfiguration"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "ObjectLockConfigurationNotFoundError":
            raise
        found = {}
    if found.get("ObjectLockEnabled") != "Enabled":
        raise InputError(
            f"bucket {bucket} has no object lock: a copy there could be changed",
            hint="create a bucket with object lock enabled (it cannot be turned on by us)",
        )


def _there(client: Any, bucket: str, key: str) -> str:
    from botocore.exceptions import ClientError  # noqa: PLC0415 - as boto3

    try:
        return str(client.head_object(Bucket=bucket, Key=key)["Metadata"].get("sha256", ""))
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return ""
        raise
