"""The ledger names the field that a value ended in; for hosts in the Gateway API that is another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from gateshift.translate.model import LedgerEntry

__all__ = ["in_their_forms"]

_SERVICE = "VirtualService"
# Longer names come first: the first that begins the target is taken.
_FIELDS = (
    ("VirtualService http[].headers.request", "{} RequestHeaderModifier"),
    ("VirtualService http[].headers.response", "{} ResponseHeaderModifier"),
    ("VirtualService http[].headers", "{} header modifiers"),
    ("VirtualService headers", "{} header modifiers"),
    ("VirtualService http[].rewrite.authority", "{} URLRewrite.hostname"),
    ("VirtualService http[].rewrite.uriRegexRewrite", "{} URLRewrite.path"),
    ("VirtualService http[].redirect", "{} RequestRedirect"),
    ("VirtualService http[].mirrors", "{} RequestMirror"),
    ("VirtualService http[].timeout", "{} rules[].timeouts.request"),
    ("VirtualService http[].retries.attempts", "EnvoyFilter retry_policy"),
    ("VirtualService http[].route", "{} rules[].backendRefs"),
    ("VirtualService http[].match", "{} rules[].matches"),
    ("VirtualService hosts", "{} hostnames"),
    ("order of VirtualService rules", "precedence of {} matches"),
)


def _written(target: str, form: str) -> str:
    if form == _SERVICE:
        return target
    for known, text in _FIELDS:
        if target.startswith(known):
            return text.format(form)
    return target


def in_their_forms(
    entries: Iterable[LedgerEntry], forms: Mapping[str, Iterable[str]], everywhere: Iterable[str]
) -> tuple[LedgerEntry, ...]:
    """Return *entries* with the fields that they really ended in.

    *forms* gives the kinds of the emitted routes for each resource (``routes/1``), *everywhere* those of
    all hosts: what is no route may serve any.
    """
    rest = sorted(everywhere)
    found = []
    for one in entries:
        if _SERVICE in one.target:
            kinds = sorted(forms.get(one.resource, ())) or rest
            parts = [_written(part, kind) for part in one.target.split("; ") for kind in kinds]
            one = replace(one, target="; ".join(dict.fromkeys(parts)))  # noqa: PLW2901 - the same entry
        found.append(one)
    return tuple(found)
