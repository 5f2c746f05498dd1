"""Verdicts on a canary stage: pure functions on frozen samples. See ``docs/verdicts.md`` for how."""
