"""Which header names carry credentials, so that none is copied into a readable object by accident."""

from __future__ import annotations

import re

__all__ = ["looks_secret"]

_SECRETIVE = re.compile(
    r"^(proxy-)?authorization$|^cookie$|api[-_]?key|token|secret|password|credential|[-_]key$", re.IGNORECASE
)


def looks_secret(name: str) -> bool:
    """Tell whether a header of this name usually carries a credential."""
    return bool(_SECRETIVE.search(name))
