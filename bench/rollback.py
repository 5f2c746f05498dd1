"""Twenty rollbacks at random moments against the lab's Route 53: how long until DNS is back.

Each round shifts to a random weight, sometimes abandons the shift before it is INSYNC (as a killed run
would), and rolls back with a fresh shifter that knows neither cluster nor load balancers. Measured: seconds
until the change is accepted, until it is INSYNC, and whether the answers in force then name APISIX only.
The users' part (TTL, caches) is measured by the rehearsal, which has clients.

    python bench/rollback.py [--rounds 20] [--pending 0.5] [--seed 1]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
import urllib.request

from gateshift.lab.topology import APISIX_LB_NAME, HOSTS, ISTIO_LB_NAME, ZONE
from gateshift.params.model import Route53Params
from gateshift.traffic.route53 import Route53Shifter


def main() -> int:
    """Run the rounds and print one JSON document; exit 1 if any rollback failed or was over 5 s."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pending", type=float, default=0.5, help="seconds from PENDING to INSYNC")
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args()
    chance = random.Random(flags.seed)
    command = [sys.executable, "-m", "gateshift.lab.route53", "--pending", str(flags.pending)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{json.loads(server.stdout.readline())['port']}"
            rounds = [one_round(url, chance) for _ in range(flags.rounds)]
        finally:
            server.terminate()
    accepted = sorted(r["accepted_s"] for r in rounds)
    insync = sorted(r["insync_s"] for r in rounds)
    good = int(sum(r["back"] for r in rounds))
    summary = {
        "rounds": len(rounds),
        "back": good,
        "accepted_s": {"median": round(statistics.median(accepted), 3), "max": round(accepted[-1], 3)},
        "insync_s": {"median": round(statistics.median(insync), 3), "max": round(insync[-1], 3)},
    }
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    return 0 if good == len(rounds) and accepted[-1] <= 5.0 else 1


def one_round(url: str, chance: random.Random) -> dict[str, float]:
    """Shift somewhere, then roll back blind; return the times."""
    params = Route53Params.model_validate({"zone": ZONE, "hosts": list(HOSTS), "endpoint_url": url})
    shifter = Route53Shifter(params, apisix_target=APISIX_LB_NAME, istio_target=ISTIO_LB_NAME)
    prepare = shifter.prepare_plan()
    if not prepare.empty:
        shifter.confirm(shifter.set(prepare))
    receipt = shifter.set(shifter.plan(chance.randint(1, 100)))
    if chance.random() < 0.5:
        shifter.confirm(receipt)
    else:
        time.sleep(chance.uniform(0.0, 0.5))
    begun = time.monotonic()
    blind = Route53Shifter(params, apisix_target="", istio_target="")
    receipt = blind.set(blind.plan(0))
    accepted = time.monotonic() - begun
    blind.confirm(receipt)
    insync = time.monotonic() - begun
    with urllib.request.urlopen(f"{url}/lab/answers", timeout=10) as got:  # noqa: S310 - our own loopback server
        answers = json.load(got)
    served = [a for h in HOSTS for a in answers[h]["answers"] if a["weight"]]
    back = len(served) == len(HOSTS) and all(a["target"] == APISIX_LB_NAME for a in served)
    return {"accepted_s": accepted, "insync_s": insync, "back": float(back)}


if __name__ == "__main__":
    sys.exit(main())
