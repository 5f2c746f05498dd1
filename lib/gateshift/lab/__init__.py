"""The rehearsal lab: a real control plane, Istio, Envoy and Prometheus on this machine's loopback.

:func:`up` starts a lab and returns when it is ready, :func:`down` ends it without leaving a process or file,
:func:`status` reads its state. Istio itself is not installed by the lab: the notebook ``10_install`` runs
``istioctl install`` as in production, and the lab's node agent then runs the real istiod and Envoy.
"""

from __future__ import annotations

from gateshift.lab.lifecycle import down, forget_migrations, reset, status, up
from gateshift.lab.state import LabState, Part

__all__ = ["LabState", "Part", "down", "forget_migrations", "reset", "status", "up"]
