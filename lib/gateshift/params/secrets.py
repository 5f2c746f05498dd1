"""Which of the params are secret, and which have no value."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from pydantic import BaseModel, SecretStr

from gateshift.params.unset import Unset

__all__ = ["plain", "secrets_of", "unset_of"]


def secrets_of(value: object) -> tuple[str, ...]:
    """Collect the plain text of each SecretStr in a params model that has one, for the redactor."""
    return tuple(one.get_secret_value() for one in _secrets(value) if not isinstance(one, Unset))


def unset_of(value: object) -> tuple[Unset, ...]:
    """Return the references in a params model that have no value."""
    return tuple(one for one in _secrets(value) if isinstance(one, Unset))


def _secrets(value: object) -> Iterator[SecretStr]:
    if isinstance(value, SecretStr):
        yield value
    elif isinstance(value, BaseModel):
        yield from _secrets(value.__dict__)  # reading a field without a value is an error
    elif isinstance(value, dict):
        for item in value.values():
            yield from _secrets(item)
    elif isinstance(value, tuple):
        for item in value:
            yield from _secrets(item)


def plain(params: BaseModel, *, leave_out: Collection[str]) -> dict[str, Any]:
    """Return *params* as plain JSON for a digest, without the fields *leave_out* of the top level.

    A secret is stars, whether it has a value or not; so is any other key whose reference has none.
    """
    shown = _masked(params)
    found: dict[str, Any] = shown.model_dump(mode="json", exclude=set(leave_out), warnings=False)
    return found


def _masked(value: Any) -> Any:
    if isinstance(value, Unset):
        return SecretStr(value.reference)
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: _masked(inner) for name, inner in value.__dict__.items()})
    if isinstance(value, dict):
        return {key: _masked(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_masked, value))
    return value
