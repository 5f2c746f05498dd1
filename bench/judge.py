"""How often and how late judges of a canary are wrong: ours, Flagger, Argo Rollouts and Kayenta.

``python bench/judge.py --out docs/verdicts.md`` measures everything and writes its tables between the marks
in that file; without ``--out`` they are printed. Seeded: the same seed gives the same tables. Two processes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import judge_faults
from judge_common import SEED
from judge_healthy import healthy_tables, stress_table
from judge_latency import latency_table
from judge_promotions import promotion_tables
from judge_sick import frontier_table, sick_table, turning_table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20_000, help="healthy and wrong-promotion runs a case")
    parser.add_argument("--sick-runs", type=int, default=2_000)
    parser.add_argument("--fault-runs", type=int, default=10_000, help="runs with injected missing data")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="Markdown file with the marks to write between")
    options = parser.parse_args()
    begun = time.monotonic()
    with ProcessPoolExecutor(options.processes) as pool:
        sick, healthy = options.sick_runs, options.runs
        work: tuple[tuple[str, Callable[[], list[str]]], ...] = (
            ("sick canaries", lambda: sick_table(pool.map, sick)),
            ("frontier", lambda: frontier_table(pool.map, sick)),
            ("second frontier", lambda: turning_table(pool.map, 4 * sick)),
            ("promotions", lambda: promotion_tables(pool.map, healthy, max(sick // 10, 20))),
            ("latency", lambda: latency_table(pool.map, healthy // 4, max(sick // 4, 20))),
            ("missing data", lambda: judge_faults.fault_table(pool.map, options.fault_runs)),
            ("other bursts", lambda: stress_table(pool.map, sick)),
            ("healthy migrations", lambda: healthy_tables(pool.map, healthy)),
        )
        parts = []
        for what, measure in work:
            parts.append(measure())
            sys.stderr.write(f"{what}: measured after {time.monotonic() - begun:.0f} s\n")
    seconds = time.monotonic() - begun
    text = "\n\n".join("\n".join(part) for part in parts)
    text = f"Measured by `bench/judge.py`, seed {SEED}, in {seconds / 60:.0f} minutes.\n\n{text}\n"
    if options.out is None:
        sys.stdout.write(text)
        return 0
    page = options.out.read_text(encoding="utf-8")
    head, _, rest = page.partition("<!-- bench -->\n")
    tail = rest.partition("<!-- /bench -->")[2]
    options.out.write_text(f"{head}<!-- bench -->\n{text}<!-- /bench -->{tail}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
