"""References of a params file without a value: an error for whoever needs one, a warning for others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NoReturn

from pydantic import SecretStr

from gateshift.errors import ParamsError

__all__ = ["Unset", "covers", "refuse"]


class Unset(SecretStr):
    """What stands in the model where a reference has no value. Using it raises ParamsError.

    It is a SecretStr so that it may stand where a secret does, also inside a list of several. ``key`` is its
    place in the file, ``scheme`` and ``name`` the two parts of the reference.
    """

    def __init__(self, source: str, key: str, scheme: str, name: str) -> None:
        super().__init__(f"${{{scheme}:{name}}}")
        self.source, self.key, self.scheme, self.name = source, key, scheme, name

    @property
    def reference(self) -> str:
        """The reference as it is written in the file."""
        return self._secret_value

    def get_secret_value(self) -> NoReturn:
        """Raise :class:`~gateshift.errors.ParamsError`: there is none."""
        raise _error([self])

    def __str__(self) -> str:
        return self.reference

    def __repr__(self) -> str:
        return f"Unset({self.reference!r})"

    # Those of SecretStr ask for the value.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unset) and (self.key, self.reference) == (other.key, other.reference)

    def __hash__(self) -> int:
        return hash((self.key, self.reference))


def covers(needs: Collection[str], key: str) -> bool:
    """True when *key* (dotted, lists with ``[0]``) is one of *needs* or lies below one."""
    return any(key == need or key.startswith((f"{need}.", f"{need}[")) for need in needs)


def refuse(missing: Sequence[Unset]) -> None:
    """Raise one :class:`~gateshift.errors.ParamsError` that names file, key and remedy of all *missing*."""
    if missing:
        raise _error(missing)


def _error(missing: Sequence[Unset]) -> ParamsError:
    scheme = missing[0].scheme
    names = ", ".join(dict.fromkeys(one.name for one in missing if one.scheme == scheme))
    remedy = {
        "env": f"set the environment variable {names}",
        "lab": "start the lab with `gateshift lab up`",
    }.get(scheme, f"provide {names}")
    lines = [f"{one.source}: {one.key}: {one.reference} has no value" for one in missing]
    return ParamsError("\n".join(lines), hint=remedy)
