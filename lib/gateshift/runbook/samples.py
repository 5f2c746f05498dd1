"""A stage's samples on the disk, and what happens when the disk does not take them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gateshift.errors import Unwritable
from gateshift.judge.model import Sample, Side, Verdict
from gateshift.judge.replay import SampleLog
from gateshift.notebook.progress import say
from gateshift.params.model import JudgeParams, StageParams

__all__ = ["KeptSamples"]


class KeptSamples:
    """Records samples while that is possible; a stage goes on being watched without, and is not promoted.

    Watching must not end because a disk is full: the verdict to roll back needs no file.
    """

    def __init__(
        self,
        path: Path,
        stage: StageParams,
        params: JudgeParams,
        index: int,
        reference: Sequence[Side] = (),
    ) -> None:
        self.lost = ""
        """Why samples are missing, in words; empty while all are on the disk."""
        self._path = path
        self._log: SampleLog | None = None
        try:
            self._log = SampleLog(path, stage, params, index, reference)
        except OSError as error:
            self._lose(error)

    def write(self, sample: Sample) -> None:
        """Append a sample."""
        if self._log is not None:
            try:
                self._log.write(sample)
            except OSError as error:
                self._lose(error)

    def verdict(self, verdict: Verdict) -> None:
        """Append the verdict on the samples."""
        if self._log is not None:
            try:
                self._log.verdict(verdict)
            except OSError as error:
                self._lose(error)

    def require_whole(self) -> None:
        """Raise :class:`~gateshift.errors.Unwritable` when a promotion would rest on what is not kept."""
        if self.lost:
            raise Unwritable(
                f"the samples behind the verdict are not on the disk, so it promotes nothing: {self.lost}",
                hint="free disk space, then run the same notebook again: it observes this stage anew",
            )

    def _lose(self, error: OSError) -> None:
        # Nothing is appended any more: behind a torn line it could not be read.
        self._log = None
        self.lost = f"{self._path}: {error.strerror or error}"
        say(f"samples cannot be recorded any more ({self.lost}); the stage is watched on, but not promoted")
