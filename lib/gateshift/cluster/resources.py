"""How RBAC and the API server name things: calls and resources."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

__all__ = ["Call", "Resource"]


@dataclass(frozen=True, slots=True, order=True)
class Call:
    """One kind of API call as RBAC sees it. ``subresource`` is empty or for example ``log``."""

    verb: str
    group: str
    resource: str
    subresource: str = ""


@dataclass(frozen=True, slots=True)
class Resource:
    """Where a kind is served."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        """Return ``group/version``, or ``version`` for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """Return the URL path of the collection or of one object."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        scope = f"/namespaces/{quote(namespace)}" if self.namespaced and namespace else ""
        return f"{root}{scope}/{self.plural}" + (f"/{quote(name)}" if name else "")
