"""Runbooks: what each notebook reads, plans, does and verifies.

A notebook calls :func:`open_run` with its variables and then the methods of the returned
:class:`~gateshift.runbook.base.Runbook` in their fixed order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateshift.errors import InputError

__all__ = ["open_run"]


def open_run(name: str, variables: Mapping[str, Any]) -> Any:
    """Open the run of notebook *name* with the notebook's *variables* (``globals()``).

    Returns the notebook's :class:`~gateshift.runbook.base.Runbook`. Raises
    :class:`~gateshift.errors.ParamsError` before anything is touched when a parameter is wrong.
    """
    from gateshift.archive import display  # noqa: PLC0415 - slow imports
    from gateshift.runbook.after import Cleanup, Report, Rollback, Soak, Troubleshoot  # noqa: PLC0415 - slow imports
    from gateshift.runbook.base import Runbook  # noqa: PLC0415 - slow imports
    from gateshift.runbook.canary import Canary  # noqa: PLC0415 - slow imports
    from gateshift.runbook.inputs import collect  # noqa: PLC0415 - slow imports
    from gateshift.runbook.setup import Apply, Install, Preflight, Translate, Verify  # noqa: PLC0415 - slow imports

    display.install()
    every: tuple[type[Runbook], ...] = (
        Preflight, Install, Translate, Apply, Verify, Canary, Soak, Cleanup, Rollback, Troubleshoot, Report,
    )  # fmt: skip
    by_name = {kind.name: kind for kind in every}
    if name not in by_name:
        raise InputError(f"there is no runbook {name}", hint=f"one of {', '.join(by_name)}")
    kind = by_name[name]
    params, extra = collect(variables, kind.own)
    return kind(params, extra)
