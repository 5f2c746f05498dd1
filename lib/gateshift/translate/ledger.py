"""The ledger: every leaf of the source ends in exactly one entry, or the translation fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gateshift.apisix.model import Configuration, Resource
from gateshift.errors import GateshiftError
from gateshift.translate.model import Fidelity, LedgerEntry

__all__ = ["Ledger", "Path", "format_path", "leaves"]

Path = tuple[str | int, ...]


def format_path(path: Path) -> str:
    """Write a path as ``plugins.cors.allow_origins[0]``; keys with dots or spaces are quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part and all(c.isalnum() or c in "_-" for c in part):
            text += f".{part}" if text else part
        else:
            text += f'["{part}"]'
    return text


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the path of each leaf; an empty mapping or list is a leaf, for it was written."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, str(key)))
    elif isinstance(value, list | tuple) and value:
        for position, item in enumerate(value):
            yield from leaves(item, (*path, position))
    else:
        yield path


@dataclass(slots=True)
class _Mark:
    fidelity: Fidelity
    targets: list[str]
    notes: list[str]

    def merge(self, fidelity: Fidelity, target: str, note: str) -> None:
        if fidelity.rank > self.fidelity.rank:
            self.fidelity = fidelity
        if target and target not in self.targets:
            self.targets.append(target)
        if note and note not in self.notes:
            self.notes.append(note)


class Ledger:
    """Collects marks during a translation; :meth:`close` turns them into entries."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._marks: dict[tuple[str, str], dict[Path, _Mark]] = {}

    def mark(
        self,
        resource: Resource,
        path: Path,
        fidelity: Fidelity,
        *,
        target: str = "",
        note: str = "",
    ) -> None:
        """Account for *path* and all that is below it, unless a deeper mark says otherwise.

        Marking one path twice keeps the worse fidelity and all notes: one source may serve many routes.
        """
        marks = self._marks.setdefault((resource.kind, resource.id), {})
        if path in marks:
            marks[path].merge(fidelity, target, note)
        else:
            marks[path] = _Mark(fidelity, [target] if target else [], [note] if note else [])

    def marked(self, resource: Resource, path: Path) -> bool:
        """Tell whether *path* itself or something above it is accounted for."""
        marks = self._marks.get((resource.kind, resource.id), {})
        return any(path[:depth] in marks for depth in range(len(path), -1, -1))

    def open_leaves(self, resource: Resource, path: Path = ()) -> list[Path]:
        """Return the leaves at or below *path* that nothing accounts for yet."""
        value: Any = resource.spec
        for part in path:
            value = value[part]
        return [leaf for leaf in leaves(value, path) if not self.marked(resource, leaf)]

    def differences(self, resource: Resource, path: Path) -> list[tuple[Path, Fidelity, str]]:
        """Return (leaf, fidelity, note) of what is not exact at or below *path*; open leaves are left out."""
        value: Any = resource.spec
        for part in path:
            value = value[part]
        marks = self._marks.get((resource.kind, resource.id), {})
        found = []
        for leaf in leaves(value, path):
            mark = next((marks[leaf[:d]] for d in range(len(leaf), -1, -1) if leaf[:d] in marks), None)
            if mark is not None and mark.fidelity.rank > Fidelity.EXACT.rank:
                found.append((leaf, mark.fidelity, "; ".join(mark.notes)))
        return found

    def _refused(self) -> Iterator[LedgerEntry]:
        """Yield the leaves of objects that APISIX's schema refuses: nothing of them is converted."""
        found = self._configuration.findings
        for resource in self._configuration.refused:
            name = f"{resource.kind}/{resource.id}"
            why = [f"{f.message}; {f.remedy}" for f in found if f.unread == name]
            for leaf in leaves(resource.spec):
                yield LedgerEntry(
                    name, format_path(leaf), Fidelity.MANUAL, "", "; ".join(why), str(resource.origin)
                )

    def close(self) -> tuple[LedgerEntry, ...]:
        """Return one entry a leaf, in source order. Raises GateshiftError when a leaf is unaccounted for."""
        entries: list[LedgerEntry] = []
        lost: list[str] = []
        for resource in self._configuration:
            marks = self._marks.get((resource.kind, resource.id), {})
            name = f"{resource.kind}/{resource.id}"
            for leaf in leaves(resource.spec):
                mark = None
                for depth in range(len(leaf), -1, -1):
                    mark = marks.get(leaf[:depth])
                    if mark is not None:
                        break
                if mark is None:
                    lost.append(f"{resource.origin} {name} {format_path(leaf)}")
                    continue
                entries.append(
                    LedgerEntry(
                        name,
                        format_path(leaf),
                        mark.fidelity,
                        "; ".join(mark.targets),
                        "; ".join(mark.notes),
                        str(resource.origin),
                    )
                )
        entries += self._refused()
        if lost:
            raise GateshiftError(
                f"the translation lost {len(lost)} source values, the first is {lost[0]}",
                hint="this is a defect of gateshift: nothing was written; report it with the file named",
            )
        return tuple(entries)
