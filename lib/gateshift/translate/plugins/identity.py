"""Consumers as plugins see them: who has which credential, and the headers that tell backends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateshift.apisix.model import Kind, Resource
from gateshift.translate.plugins.registry import Use

__all__ = ["consumer_name", "credentials", "groups", "strip_identity"]

_OTHERS = ("x-credential-identifier", "x-consumer-custom-id")


def consumer_name(owner: Resource) -> str:
    """Return the consumer's user name; a credential's id starts with it."""
    return str(owner.spec.get("username") or owner.id.split("/", 1)[0])


def credentials(use: Use, plugin: str) -> Iterator[tuple[Resource, str, Mapping[str, Any]]]:
    """Yield (resource, consumer, config) of every credential of *plugin* in the configuration."""
    for kind in (Kind.CONSUMER, Kind.CREDENTIAL):
        for one in use.job.configuration.of(kind).values():
            plugins = one.spec.get("plugins")
            config = plugins.get(plugin) if isinstance(plugins, Mapping) else None
            if isinstance(config, Mapping):
                yield one, consumer_name(one), config


def groups(use: Use) -> dict[str, str]:
    """Return the consumer group of every consumer that has one."""
    return {
        consumer_name(one): str(one.spec["group_id"])
        for one in use.job.configuration.of(Kind.CONSUMER).values()
        if one.spec.get("group_id") is not None
    }


def strip_identity(use: Use, *, username: bool = False) -> None:
    """Keep clients from sending what only the gateway may say of them.

    *username* removes X-Consumer-Username as well, where no filter of the route writes it anew.
    """
    for name in (*_OTHERS, *(("x-consumer-username",) if username else ())):
        use.draft.remove_header("request", name)
