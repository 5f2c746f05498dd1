"""Verdicts on a canary stage: pure functions on frozen samples. See ``docs/judge.md`` for the mathematics."""
