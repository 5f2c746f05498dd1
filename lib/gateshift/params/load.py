"""Read a params file: YAML, ``${env:NAME}`` and ``${lab:key}`` references, then the model.

``${env:NAME:-default}`` gives a default. A value that is only a reference keeps the type it resolves to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gateshift.errors import ParamsError
from gateshift.params.model import Params

__all__ = ["Resolver", "load", "parse_override", "validate"]

Resolver = Callable[[str], object]
"""Gives the value of one reference (the part after the colon); raises KeyError when there is none."""

_REFERENCE = re.compile(r"\$\{(\w+):([^}]*)\}")


def _environment(name: str) -> object:
    return os.environ[name]


def load(
    path: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    resolvers: Mapping[str, Resolver] | None = None,
) -> Params:
    """Read, resolve and validate one params file.

    *overrides* are dotted keys (``traffic.arrival_timeout``) with plain values. Raises
    :class:`~gateshift.errors.ParamsError` naming file, key and remedy.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such params file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ParamsError(f"{path}:{where} is not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(data, dict):
        raise ParamsError(f"{path}: a params file is a mapping of keys, this is {type(data).__name__}")
    for key, value in (overrides or {}).items():
        _set(data, key, value)
    return validate(data, source=str(path), resolvers=resolvers)


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``key=value`` of ``-p``; the value is read as YAML, as papermill does."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ParamsError(f"-p {text}: write key=value", hint="for example -p mode=act")
    return key, yaml.safe_load(value)


def _set(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for name in parents:
        data = data.setdefault(name, {})
        if not isinstance(data, dict):
            raise ParamsError(f"-p {dotted}: {name} is not a section")
    data[last] = value


def validate(
    data: Mapping[str, Any], *, source: str, resolvers: Mapping[str, Resolver] | None = None
) -> Params:
    """Resolve references in plain *data* and validate it; *source* names it in errors."""
    every = {"env": _environment, **(resolvers or {})}
    resolved = _resolve(dict(data), every, source, "")
    try:
        return Params.model_validate(resolved)
    except ValidationError as error:
        raise ParamsError(_explain(error, source)) from None


def _resolve(value: Any, resolvers: Mapping[str, Resolver], source: str, key: str) -> Any:
    if isinstance(value, dict):
        out = {}
        for k, v in value.items():
            name = k if isinstance(k, str) else repr(k)
            resolved_key = _resolve(k, resolvers, source, key) if isinstance(k, str) else k
            out[resolved_key] = _resolve(v, resolvers, source, f"{key}.{name}" if key else name)
        return out
    if isinstance(value, list):
        return [_resolve(v, resolvers, source, f"{key}[{i}]") for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def one(found: re.Match[str]) -> object:
        scheme, (name, dash, default) = found[1], found[2].partition(":-")
        if scheme not in resolvers:
            raise ParamsError(f"{source}: {key}: unknown reference ${{{scheme}:...}}; use env or lab")
        try:
            return resolvers[scheme](name)
        except KeyError:
            if dash:
                return default
            remedy = {
                "env": f"set the environment variable {name}",
                "lab": "start the lab with `gateshift lab up`",
            }.get(scheme, f"provide {name}")
            raise ParamsError(f"{source}: {key}: ${{{scheme}:{name}}} has no value", hint=remedy) from None

    whole = _REFERENCE.fullmatch(value)
    if whole:
        return one(whole)  # keeps the type: a port stays a number
    return _REFERENCE.sub(lambda m: str(one(m)), value)


def _explain(error: ValidationError, source: str) -> str:
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        key = ".".join(str(part) for part in item["loc"]) or "(whole file)"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key; remove it or correct its spelling"
        elif item["type"] == "missing":
            message = "this key is required"
        lines.append(f"{source}: {key}: {message}")
    return "\n".join(lines)
