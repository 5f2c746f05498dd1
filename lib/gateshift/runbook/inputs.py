"""From a notebook's variables to validated params, for papermill and for a person alike.

papermill puts each top-level key of a params file into the notebook as a variable. Every plain variable
that is there when the run opens is therefore a parameter, and an unknown one is an error, not a comment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from gateshift.errors import InputError, LabError, ParamsError
from gateshift.params import Needs, Params, load, validate

__all__ = ["check_own", "collect", "in_clone", "migration_folder", "project_root", "resolvers"]

_PLAIN = (str, int, float, bool, list, dict, type(None))
_OWN_HINT = "correct it in the parameters cell, or after -p, and run the same notebook again"
_SHELL = {"In", "Out", "exit", "quit", "open", "get_ipython"}


def project_root(start: Path | None = None) -> Path:
    """Return the nearest folder upwards that holds ``notebooks`` and ``params``; else the working folder.

    ``GATESHIFT_ROOT`` overrides it, for an installed package run outside a clone.
    """
    named = os.environ.get("GATESHIFT_ROOT")
    if named:
        return Path(named)
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "params").is_dir():
            return folder
    return here


def in_clone() -> Path:
    """Return the project's root; raises :class:`~gateshift.errors.InputError` outside of a clone.

    For commands that a journal which is not there would mislead: production has begun, and "not started"
    is what an empty folder would say.
    """
    root = project_root()
    if not (root / "notebooks").is_dir():
        raise InputError(
            f"{root} has no notebooks", hint="run this in a clone of gateshift, or set GATESHIFT_ROOT to one"
        )
    return root


def migration_folder(params: Params) -> Path:
    """Return the folder of the migration's archive; relative ``outputs`` lie in the project."""
    return project_root() / params.outputs / params.migration


def resolvers() -> dict[str, Any]:
    """Return the reference schemes of params files besides ``env``: ``lab`` reads the lab's state file."""

    def lab(key: str) -> object:
        # Imported here: a production run must not need the lab's packages.
        from gateshift.lab.state import resolver  # noqa: PLC0415 - see above

        try:
            return resolver(os.environ.get("GATESHIFT_LAB", "default"))(key)
        except LabError as error:
            raise KeyError(str(error)) from None

    return {"lab": lab}


def check_own(given: Mapping[str, Any]) -> None:
    """Raise :class:`~gateshift.errors.ParamsError` for a notebook's own parameter that cannot be meant.

    A switch takes no text: any that is not empty would turn it on, ``undo=never`` as well. The texts for the
    record (``reason`` and the like) are taken as they are; a rollback is not refused for one.
    """
    where = "parameters of this notebook"
    for name in ("undo", "strict_mtls"):
        if not isinstance(given.get(name), bool | None):
            raise ParamsError(f"{where}: {name}: write true or false", hint=_OWN_HINT)
    samples, window = given.get("samples"), given.get("window")
    if samples is not None and (type(samples) is not int or samples < 1):
        raise ParamsError(f"{where}: samples: write a whole number, 1 or more", hint=_OWN_HINT)
    if window is not None and (type(window) not in {int, float} or not 0 < window < float("inf")):
        raise ParamsError(f"{where}: window: write a number of seconds, without a unit", hint=_OWN_HINT)


def collect(
    variables: Mapping[str, Any], own: frozenset[str], needs: Needs | None = None
) -> tuple[Params, dict[str, Any]]:
    """Split a notebook's variables into validated params and the notebook's *own* parameters.

    *needs* names the keys whose references must have a value (None: all). Raises
    :class:`~gateshift.errors.ParamsError` for unknown or invalid ones.
    """
    given = {
        name: value
        for name, value in variables.items()
        if not name.startswith("_")
        and name not in _SHELL
        and not isinstance(value, ModuleType)
        and isinstance(value, _PLAIN)
    }
    params_file = given.pop("params_file", None)
    if params_file is None:
        params_file = os.environ.get("GATESHIFT_PARAMS") or "params/lab.yaml"
    extra = {name: given.pop(name) for name in own if name in given}
    check_own(extra)
    extra["params_file"] = params_file
    # None is how a parameters cell says "as in the params file".
    overrides = {name: value for name, value in given.items() if value is not None}
    if "migration" in overrides:
        source = "parameters of this notebook"
        return validate(overrides, source=source, resolvers=resolvers(), needs=needs), extra
    if not isinstance(params_file, str) or not params_file:
        raise ParamsError(
            "parameters of this notebook: neither params_file nor migration is set",
            hint="set params_file in the parameters cell, or run papermill with -f params/<file>.yaml",
        )
    path = Path(params_file)
    if not path.is_absolute() and not path.exists():
        path = project_root() / params_file
    return load(path, overrides=overrides, resolvers=resolvers(), needs=needs), extra
