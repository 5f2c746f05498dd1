"""Runbooks: what each notebook reads, plans, does and verifies.

A notebook calls :func:`open_run` with its variables and then the methods of the returned
:class:`~gateshift.runbook.base.Runbook` in their fixed order.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from gateshift.errors import InputError
from gateshift.loopback import reach_directly

__all__ = ["open_run"]


def open_run(name: str, variables: Mapping[str, Any]) -> Any:
    """Open the run of notebook *name* with the notebook's *variables* (``globals()``).

    Returns the notebook's :class:`~gateshift.runbook.base.Runbook`. Raises
    :class:`~gateshift.errors.ParamsError` before anything is touched when a parameter is wrong.
    """
    if name not in _RUNBOOKS:
        raise InputError(f"there is no runbook {name}", hint=f"one of {', '.join(_RUNBOOKS)}")
    from gateshift.archive import display  # noqa: PLC0415 - slow imports
    from gateshift.notebook.failure import failure_of  # noqa: PLC0415 - slow imports
    from gateshift.params import needs_of  # noqa: PLC0415 - slow imports
    from gateshift.runbook.inputs import collect  # noqa: PLC0415 - slow imports

    reach_directly()
    display.install(explain=failure_of)
    module, _, kind_name = _RUNBOOKS[name].partition(":")
    kind = getattr(importlib.import_module(f"gateshift.runbook.{module}"), kind_name)
    params, extra = collect(variables, kind.own, needs_of(name))
    return kind(params, extra)


# Only the notebook's own runbook is imported: an operator waits for matplotlib where there is a plot.
_RUNBOOKS = {
    "00_preflight": "setup:Preflight",
    "10_install": "install:Install",
    "20_translate": "setup:Translate",
    "30_apply": "apply:Apply",
    "40_verify": "setup:Verify",
    "50_canary": "canary:Canary",
    "60_soak": "soak:Soak",
    "70_cleanup": "cleanup:Cleanup",
    "80_rollback": "rollback:Rollback",
    "90_troubleshoot": "report:Troubleshoot",
    "99_report": "report:Report",
}
