"""``python -m gateshift.lab.route53``: Route 53 with the lab's zone.

AWS API on the port (any credentials). Beside it: ``GET /lab/answers[?host=]``, ``GET /lab/changes``,
``GET``/``PUT``/``DELETE /lab/faults`` (see :class:`~gateshift.lab.route53.service.Behaviour`).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from typing import Any

from gateshift.errors import LabError
from gateshift.lab import dataplane
from gateshift.lab.topology import APISIX_LB_NAME, HOSTS, LB_ZONE_ID, ZONE

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Parse flags and serve until a signal."""
    parser = argparse.ArgumentParser(prog="gateshift.lab.route53", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port of the API (0: a free one)")
    parser.add_argument("--pending", type=float, default=2.0, help="seconds from PENDING to INSYNC")
    parser.add_argument("--target", default=APISIX_LB_NAME, help="load balancer of the seeded alias records")
    flags = parser.parse_args(argv)

    # Imported late and after the environment is set: moto reads it when imported, and takes a second.
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    from moto.moto_server.werkzeug_app import MotoRequestHandler  # noqa: PLC0415 - see above
    from werkzeug.serving import make_server  # noqa: PLC0415 - see above

    from gateshift.lab.route53.service import Behaviour, Service  # noqa: PLC0415 - see above

    class Quiet(MotoRequestHandler):  # type: ignore[misc]  # moto ships no types
        """Keep connections open and write no line a request."""

        protocol_version = "HTTP/1.1"

        def log_request(self, *_: Any) -> None:
            """Say nothing."""

    service = Service(Behaviour(pending_seconds=flags.pending))
    zone_id = service.seed(
        ZONE,
        [
            {
                "Name": f"{host}.",
                "Type": "A",
                "AliasTarget": {
                    "HostedZoneId": LB_ZONE_ID,
                    "DNSName": f"{flags.target.rstrip('.').lower()}.",
                    "EvaluateTargetHealth": False,
                },
            }
            for host in HOSTS
        ],
    )
    try:
        sock = dataplane.bind(flags.port)
    except LabError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sock.setblocking(True)
    port = sock.getsockname()[1]
    server = make_server("127.0.0.1", port, service, threaded=True, request_handler=Quiet, fd=sock.fileno())
    # Threads of idle keep-alive connections must not hold the process back.
    setattr(server, "daemon_threads", True)  # noqa: B010 - werkzeug's type does not show the mixin's field

    def stop(*_: Any) -> None:
        # shutdown() waits for serve_forever(), which runs in this very thread.
        threading.Thread(target=server.shutdown, daemon=True).start()

    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, stop)
    dataplane.announce(port=port, zone_id=zone_id)
    server.serve_forever(poll_interval=0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
