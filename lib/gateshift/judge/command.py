"""``gateshift judge``: recompute verdicts from recorded samples."""

from __future__ import annotations

from pathlib import Path

import click

from gateshift.errors import GateshiftError, NotEnoughEvidence
from gateshift.judge.replay import replay

__all__ = ["judge_group"]


@click.group("judge")
def judge_group() -> None:
    """Recompute verdicts from recorded samples."""


@judge_group.command("replay", short_help="Judge recorded samples again and compare.")
@click.argument("archive", type=click.Path(path_type=Path))
def replay_command(archive: Path) -> None:
    """Judge the samples recorded below ARCHIVE again and compare with the verdicts on record.

    ARCHIVE is a folder (a migration's outputs) or one samples.jsonl or .parquet file.
    """
    results = replay(archive)
    for result in results:
        decision = result.recorded.get("decision", "?")
        word = "same" if result.same else "NOT REPLAYED" if result.other_edition else "DIFFERENT"
        click.echo(f"{word}: stage {result.stage_index + 1}, {decision} ({result.path.name})")
        if result.recomputed is None:
            click.echo(f"  {result.reason}")
        elif not result.same:
            click.echo(
                f"  recomputed: {result.recomputed.decision.value}: {'; '.join(result.recomputed.reasons)}"
            )
    if not results:
        click.echo("samples are recorded, but no verdict is")
    if any(not result.same and not result.other_edition for result in results):
        raise GateshiftError(
            "recorded and recomputed verdicts differ",
            hint="samples or journal were changed: `gateshift audit verify` says which",
        )
    if any(not result.same for result in results):
        raise NotEnoughEvidence(
            "another edition of the judge reached these verdicts, so they were not recomputed",
            hint="install the version of gateshift that manifest.json names, and replay with it",
        )
