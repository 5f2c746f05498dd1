"""Read a params file: YAML, ``${env:NAME}`` and ``${lab:key}`` references, then the model.

``${env:NAME:-default}`` gives a default; a variable that is empty counts as unset. A value that is only a
reference keeps the type it resolves to. One that has no value is an error unless the caller names what it
*needs* and this is not among it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gateshift.errors import ParamsError
from gateshift.params.base import Model, listed_in
from gateshift.params.model import Params
from gateshift.params.needs import Needs
from gateshift.params.repeated import repeated_keys
from gateshift.params.unset import Unset, covers, refuse

__all__ = ["Resolver", "load", "parse_override", "validate"]

Resolver = Callable[[str], object]
"""Gives the value of one reference (the part after the colon); raises KeyError when there is none."""

_REFERENCE = re.compile(r"\$\{(\w+):([^}]*)\}")


def _environment(name: str) -> object:
    # A pipeline gives a secret that it does not have as an empty text; a shell's :- takes it for unset, too.
    value = os.environ[name]
    if not value:
        raise KeyError(name)
    return value


class _TwiceError(yaml.MarkedYAMLError):
    """A key that is written twice; its problem is the key."""


class _Once(yaml.SafeLoader):
    """Refuses a key that is written twice: YAML would take the second, and nobody would see it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key in repeated_keys(node):
            raise _TwiceError(None, None, key.value, key.start_mark)
        return super().construct_mapping(node, deep)


def load(
    path: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    resolvers: Mapping[str, Resolver] | None = None,
    needs: Needs | None = None,
) -> Params:
    """Read, resolve and validate one params file.

    *overrides* are dotted keys (``traffic.arrival_timeout``) with plain values; *needs* names the keys whose
    references must have a value (None: all). Raises :class:`~gateshift.errors.ParamsError` naming file, key
    and remedy.
    """
    path = Path(path)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Once)  # noqa: S506 - a safe loader
    except FileNotFoundError:
        raise ParamsError(
            f"{path}: no such params file",
            hint=f"go to the clone's folder (this is {Path.cwd()}), or name the file by its whole path",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: cannot be read: {error}") from None
    except _TwiceError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ParamsError(f"{path}: line {line}: {error.problem} is written twice in its section") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ParamsError(f"{path}:{where} is not valid YAML: {getattr(error, 'problem', error)}") from None
    if data is None:
        raise ParamsError(f"{path}: a params file is a mapping of keys, this one is empty")
    if not isinstance(data, dict):
        raise ParamsError(f"{path}: a params file is a mapping of keys, this is a list or a single value")
    for key, value in (overrides or {}).items():
        _set(data, key, value)
    return validate(data, source=str(path), resolvers=resolvers, needs=needs)


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``key=value`` of ``-p``; the value is read as YAML, as papermill does."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ParamsError(f"-p {text}: write key=value", hint="for example -p mode=act")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ParamsError(
            f"-p {text}: the value is not valid YAML", hint="quote a text: -p 'reason=\"what you see\"'"
        ) from None


def _set(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for name in parents:
        data = data.setdefault(name, {})
        if not isinstance(data, dict):
            raise ParamsError(f"-p {dotted}: {name} is not a section")
    data[last] = value


def validate(
    data: Mapping[str, Any],
    *,
    source: str,
    resolvers: Mapping[str, Resolver] | None = None,
    needs: Needs | None = None,
) -> Params:
    """Resolve references in plain *data* and validate it; *source* names it in errors, *needs* as in load."""
    every = {"env": _environment, **(resolvers or {})}
    missing: list[Unset] = []
    resolved = _resolve(dict(data), every, source, "", missing)
    if needs is None:
        refuse(missing)
    try:
        params = Params.model_validate(resolved)
    except ValidationError as error:
        raise ParamsError(_explain(error, source)) from None
    if needs is not None and missing:
        needed = needs(params)
        refuse([one for one in missing if covers(needed, one.key)])
    return params


def _resolve(
    value: Any, resolvers: Mapping[str, Resolver], source: str, key: str, missing: list[Unset]
) -> Any:
    """Return *value* with its references resolved; one without a value is Unset, and added to *missing*."""
    if isinstance(value, dict):
        out = {}
        for k, v in value.items():
            name = k if isinstance(k, str) else repr(k)
            resolved_key = _resolve(k, resolvers, source, key, missing) if isinstance(k, str) else k
            if isinstance(resolved_key, Unset):
                refuse([resolved_key])  # a key is what its section is made of
            out[resolved_key] = _resolve(v, resolvers, source, f"{key}.{name}" if key else name, missing)
        return out
    if isinstance(value, list):
        return [_resolve(v, resolvers, source, f"{key}[{i}]", missing) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def one(found: re.Match[str]) -> object:
        scheme, (name, dash, default) = found[1], found[2].partition(":-")
        if scheme not in resolvers:
            raise ParamsError(f"{source}: {key}: unknown reference ${{{scheme}:...}}; use env or lab")
        try:
            return resolvers[scheme](name)
        except KeyError:
            return default if dash else Unset(source, key, scheme, name)

    whole = _REFERENCE.fullmatch(value)
    # What is only a reference keeps its type: a port stays a number.
    found = [one(whole)] if whole else [one(part) for part in _REFERENCE.finditer(value)]
    unset = [part for part in found if isinstance(part, Unset)]
    missing += unset
    if unset:
        return unset[0]
    if whole:
        return found[0]
    values = iter(found)
    return _REFERENCE.sub(lambda _: str(next(values)), value)


_WORDS: Mapping[str, str] = {
    "extra_forbidden": "unknown key; remove it or correct its spelling",
    "missing": "this key is required",
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "write a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "write a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "write true or false"),
    "string_type": "write a text; quote what YAML reads as something else",
    **dict.fromkeys(
        ("model_type", "dict_type", "model_attributes_type"), "write a section of keys and values"
    ),
    **dict.fromkeys(("list_type", "tuple_type"), "write a list"),
    "greater_than_equal": "it must be at least {ge}",
    "greater_than": "it must be above {gt}",
    "less_than_equal": "it must be at most {le}",
    "less_than": "it must be below {lt}",
    **dict.fromkeys(("enum", "literal_error"), "it must be {expected}"),
    "string_pattern_mismatch": "it must have the form {pattern}",
    "too_short": "at least {min_length} are wanted, there are {actual_length}",
}
"""What a person is to write, by pydantic's type of error; its own words speak of inputs and instances."""


def _explain(error: ValidationError, source: str) -> str:
    lines = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"]) or "(whole file)"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden" and (like := _like(str(item["loc"][-1]))):
            message = f"unknown key; perhaps {like} was meant"
        elif isinstance(item["input"], Unset) and item["type"] != "extra_forbidden":
            message = f"{item['input'].reference} has no value"
        elif known := _WORDS.get(item["type"]):
            context = item.get("ctx", {})
            # A pattern that only lists words is said as an enum's values are.
            if listed := listed_in(str(context.get("pattern", ""))):
                known, words = _WORDS["enum"], [f"'{word}'" for word in listed]
                context = {"expected": " or ".join([", ".join(words[:-1]), words[-1]])}
            message = known.format(**context)
        lines.append(f"{source}: {key}: {message}")
    return "\n".join(lines)


def _like(key: str) -> str:
    """Return the key of any section that *key* is most like; empty when it is like none."""
    known, models = set(Params.model_fields), list(Model.__subclasses__())
    for model in models:
        known |= set(model.model_fields)
        models += model.__subclasses__()
    return next(iter(get_close_matches(key, sorted(known), n=1, cutoff=0.75)), "")
