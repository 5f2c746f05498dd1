"""Which of the params are secret."""

from __future__ import annotations

from pydantic import BaseModel, SecretStr

__all__ = ["secrets_of"]


def secrets_of(value: object) -> tuple[str, ...]:
    """Collect the plain text of each SecretStr in a params model, for the redactor."""
    if isinstance(value, SecretStr):
        return (value.get_secret_value(),)
    if isinstance(value, BaseModel):
        return tuple(s for name in type(value).model_fields for s in secrets_of(getattr(value, name)))
    if isinstance(value, tuple):
        return tuple(s for item in value for s in secrets_of(item))
    if isinstance(value, dict):
        return tuple(s for item in value.values() for s in secrets_of(item))
    return ()
