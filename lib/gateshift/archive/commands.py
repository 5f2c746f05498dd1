"""``gateshift history`` and ``gateshift audit``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import click

from gateshift.archive import audit
from gateshift.archive.copying import copy_to_s3
from gateshift.archive.history import listing
from gateshift.archive.packing import export
from gateshift.archive.signing import sign
from gateshift.errors import GateshiftError, InputError, JournalError
from gateshift.migration.guard import LEASE, Anchor, anchors
from gateshift.words import gloss, tell

__all__ = ["audit_group", "history_command"]

_FOLDER = click.Path(path_type=Path)


def _outputs() -> Path:
    from gateshift.runbook.inputs import in_clone  # noqa: PLC0415 - not needed when a path is given

    return in_clone() / "outputs"


@click.command("history")
@click.argument("outputs", type=_FOLDER, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def history_command(outputs: Path | None, as_json: bool) -> None:
    """List migrations under OUTPUTS (the project's outputs by default) and how they ended."""
    try:
        entries = listing(_there(outputs) if outputs else _outputs())
    except GateshiftError as error:
        raise _Refused(error) from None
    if as_json:
        click.echo(json.dumps([e.as_json() for e in entries]))
        return
    if not entries:
        click.echo(tell("cli.history.none"))
        return
    rows = [("migration", "began (UTC)", "outcome", "Istio", "runs", "rollbacks")]
    rows += [
        (e.migration, e.began[:19], e.outcome, f"{e.weight_percent} %", str(e.runs), str(e.rollbacks))
        for e in entries
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(v.ljust(w) for v, w in zip(row, widths, strict=True)).rstrip())
    for entry in entries:
        if entry.problem:
            click.echo(f"damaged: {entry.problem}", err=True)


@click.group("audit")
def audit_group() -> None:
    """Verify an archive, sign it, copy it to S3, or pack it for a ticket."""


@audit_group.command("verify", short_help="Check hash chain, manifests and reports.")
@click.argument("path", type=_FOLDER, required=False)
@click.option("--head", help="Hash noted earlier elsewhere; it must still be in the journal.")
@click.option("--cluster", "params_file", help="Params file: compare with the heads its cluster keeps.")
@click.option("--signers", type=_FOLDER, help="allowed_signers file: SSH signatures must be by one of them.")
@click.option("--key", help="Public key for signatures by cosign.")
@click.option("--kms", is_flag=True, help="Ask AWS KMS about signatures, by the keys that they name.")
@click.option("--kms-key", help="Ask AWS KMS; its signatures must be by this key (ARN or alias/NAME).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def _verify(  # noqa: PLR0917 - click passes by name
    path: Path | None,
    head: str | None,
    params_file: str | None,
    signers: Path | None,
    key: str | None,
    kms: bool,
    kms_key: str | None,
    as_json: bool,
) -> None:
    """Check hash chain, manifests and reports at PATH (all of outputs by default).

    Exit code 0: nothing was changed; a note names what no seal covers yet. 1: something was; each finding
    names its file. 2: no archive there, or a file that may not be read.
    """
    try:
        where = path or _outputs()
        given_to = {"--head": head, "--cluster": params_file, "--key": key, "--kms-key": kms_key}
        for name, given in given_to.items():
            if given is not None and not given.strip():
                # Of a variable that is not set: "ok" would be taken for the comparison that was asked for.
                raise InputError(
                    f"{name}: nothing is given to compare with", hint="give it a value, or leave it out"
                )
        kept = _anchors(params_file) if params_file else None
        found = audit.survey(
            where,
            head=head or "",
            anchors=kept,
            signers=signers,
            key=key or "",
            ask_kms=kms or bool(kms_key),
            kms_key=kms_key or "",
        )
        problems, notes = [p for p in found if not p.note], [p for p in found if p.note]
        heads = {m.name: audit.head_of(m).hash for m in audit.migrations_in(where)} if not problems else {}
        open_runs = [r for m in audit.migrations_in(where) for r in audit.unsealed(m)] if not problems else []
    except GateshiftError as error:
        raise _Refused(error) from None
    if as_json:
        answer = {
            "ok": not problems,
            "problems": [{"path": str(p.path), "what": p.what} for p in problems],
            "heads": heads,
            "unsealed_runs": open_runs,
            "notes": [{"path": str(p.path), "what": p.what} for p in notes],
        }
        click.echo(json.dumps(answer))
    else:
        for problem in problems:
            click.echo(f"CHANGED  {problem}")
        for name, value in heads.items():
            click.echo(f"ok       {name}  head {value}")
        for note in notes:
            click.echo(f"note     {note}")
    click.get_current_context().exit(1 if problems else 0)


@audit_group.command("export", short_help="Verify a migration and pack it for a ticket.")
@click.argument("migration", type=_FOLDER)
@click.argument("target", type=_FOLDER, required=False)
def _export(migration: Path, target: Path | None) -> None:
    """Verify MIGRATION (a folder) and pack it into TARGET (.tar.gz) for a ticket."""
    try:
        folder = audit.one_migration(migration)
        made = export(folder, target or Path(f"{folder.name}.tar.gz"))
    except GateshiftError as error:
        raise _Refused(error) from None
    click.echo(f"{made}  head {audit.head_of(folder).hash}")


@audit_group.command("sign", short_help="Sign the head of a migration's journal.")
@click.argument("migration", type=_FOLDER)
@click.option("--key", required=True, help="SSH private key, cosign.key, or a KMS key (arn:aws:kms:…).")
def _sign(migration: Path, key: str) -> None:
    """Sign the head of MIGRATION's journal (a folder); the signature lies in its folder signatures."""
    try:
        made = sign(audit.one_migration(migration), key)
    except GateshiftError as error:
        raise _Refused(error) from None
    click.echo(f"signed: {made}")


@audit_group.command("copy", short_help="Copy a migration to S3, under object lock.")
@click.argument("migration", type=_FOLDER)
@click.option("--bucket", required=True, help="S3 bucket with object lock.")
@click.option("--prefix", default="", help="Put in front of the migration's name.")
@click.option(
    "--retain-days", default=365, show_default=True, type=click.IntRange(1), help="Days of the lock."
)
@click.option(
    "--mode", type=click.Choice(["COMPLIANCE", "GOVERNANCE"]), default="COMPLIANCE", show_default=True
)
def _copy(migration: Path, bucket: str, prefix: str, retain_days: int, mode: str) -> None:
    """Verify MIGRATION (a folder) and copy what is new in it to S3, under object lock."""
    try:
        migration = audit.one_migration(migration)
        problems = audit.verify(migration)
        if problems:
            raise JournalError(f"not copied: {problems[0]}", hint="`gateshift audit verify` lists all")
        keys = copy_to_s3(migration, bucket, prefix=prefix, retain_days=retain_days, mode=mode)
    except GateshiftError as error:
        raise _Refused(error) from None
    click.echo(f"copied {len(keys)} files to s3://{bucket}, locked for {retain_days} days")


def _there(outputs: Path) -> Path:
    if not outputs.is_dir():
        raise InputError(f"{outputs}: no such folder", hint="name a folder of migrations, such as outputs")
    return outputs


def _anchors(params_file: str) -> Mapping[str, Anchor]:
    from gateshift.cluster.client import Cluster  # noqa: PLC0415 - only this option needs the cluster
    from gateshift.params import load, only  # noqa: PLC0415 - see above
    from gateshift.runbook.inputs import resolvers  # noqa: PLC0415 - see above

    params = load(params_file, resolvers=resolvers(), needs=only("cluster"))
    lease = Cluster.connect(params.cluster).lease_get(*LEASE)
    if lease is None:
        raise InputError("the cluster keeps no head of any journal: no migration ever acted on it")
    return anchors((lease.get("metadata") or {}).get("annotations") or {})


class _Refused(click.ClickException):
    """One error as every other command says it; a program gets its hint, too."""

    def __init__(self, error: GateshiftError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click declares it for the class
        self.hint = error.hint

    def show(self, file: IO[Any] | None = None) -> None:
        del file
        click.echo(tell("cli.error", text=gloss(self.message)), err=True)
        click.echo(tell("cli.hint", text=gloss(self.hint)), err=True)
