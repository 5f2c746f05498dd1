"""What every section of the params shares: a frozen strict model, and types that read units and names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from gateshift.params.unset import Unset, refuse

__all__ = [
    "DnsName",
    "Model",
    "Name",
    "Quantity",
    "Ratio",
    "Seconds",
    "Url",
    "Version",
    "as_tuple",
    "listed_in",
]

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(value: object) -> object:
    """Read ``30s``, ``30m``, ``1h``, ``14d`` as seconds; a bare number is refused as ambiguous."""
    if isinstance(value, str):
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", value.strip())
        if found:
            return float(found[1]) * _UNITS[found[2]]
    raise ValueError("write a duration with its unit, for example 30s, 30m, 1h or 14d")


def _version(value: object) -> object:
    """Accept only text: YAML reads an unquoted 1.10 as the number 1.1."""
    if not isinstance(value, str):
        raise ValueError(f'quote the version: YAML read a number here ({value!r}); write "1.10"')
    if not re.fullmatch(r"\d+\.\d+(\.\d+)?([-+][\w.]+)?", value):
        raise ValueError('write a version as major.minor or major.minor.patch, for example "1.31.0"')
    return value


def _dns_name(value: str) -> str:
    label = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
    if not re.fullmatch(rf"(\*\.)?{label}(\.{label})*\.?", value):
        raise ValueError("not a DNS name")
    return value.rstrip(".")


Seconds = Annotated[float, BeforeValidator(_seconds)]
Version = Annotated[str, BeforeValidator(_version)]
DnsName = Annotated[str, AfterValidator(_dns_name)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
Ratio = Annotated[float, Field(ge=0, le=1)]
Url = Annotated[str, Field(pattern=r"^https?://[^\s]+$")]


class Model(BaseModel):
    """Frozen, no unknown keys, no silent conversion of types.

    A field whose reference has no value is there, and raises :class:`~gateshift.errors.ParamsError` when it
    is read; :meth:`written` asks without reading.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    if not TYPE_CHECKING:  # it would hide from the type checker which fields there are

        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if type(value) is Unset:
                refuse([value])
            return value

    def written(self, name: str) -> bool:
        """True when field *name* is given and not empty, also by a reference that has no value."""
        return bool(self.__dict__[name])

    @field_validator("*", mode="wrap")
    @classmethod
    def _unset_stays(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """Let a reference without a value stand for its field, whatever the field's type is."""
        unset = next(_unset_in(value), None)
        if unset is None:
            return handler(value)
        if isinstance(value, Unset):
            return value
        inside = _kinds(cls.model_fields[info.field_name or ""].annotation)
        if any(kind is SecretStr or issubclass(kind, BaseModel) for kind in inside):
            return handler(value)  # a list of secrets or sections: only the one item is unset
        return unset


def _unset_in(value: Any) -> Iterator[Unset]:
    if isinstance(value, Unset):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _unset_in(inner)


def _kinds(annotation: Any) -> Iterator[type]:
    """Yield the classes that *annotation* is made of."""
    if isinstance(annotation, type):
        yield annotation
    for inner in get_args(annotation):
        yield from _kinds(inner)


def as_tuple(value: object) -> object:
    """Read a YAML list as a tuple; anything else is left to the field's own check."""
    return tuple(value) if isinstance(value, list) else value


def listed_in(pattern: str) -> list[str]:
    """Return the words that *pattern* lists and allows no other than, ``^(a|b)$``; empty for another."""
    listed = re.fullmatch(r"\^\(([a-zA-Z]+(?:\|[a-zA-Z]+)+)\)\??\$", pattern)
    return listed[1].split("|") if listed else []
