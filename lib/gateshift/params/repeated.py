"""Keys that stand twice in one mapping of YAML: PyYAML would take the last of them without a word."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

__all__ = ["repeated_keys"]


def repeated_keys(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    """Give each key of the mapping *node* that stands in it already; a node of another kind has none."""
    seen = set()
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                yield key
            seen.add(key.value)
