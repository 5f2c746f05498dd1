"""The papermill engine ``gateshift``."""

from __future__ import annotations

from papermill.engines import NBClientEngine

__all__ = ["GateshiftEngine"]


class GateshiftEngine(NBClientEngine):
    """Papermill's nbclient engine."""
