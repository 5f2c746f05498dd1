"""Addresses and CIDR blocks as lua-resty-ipmatcher 0.6.1 reads and matches them."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from gateshift.apisix.lua import to_number

__all__ = ["IpMatcher", "parse_address"]


def parse_address(text: object) -> tuple[int, int] | None:
    """Return (bits, value) of an IPv4 or IPv6 address in the strict form of ``inet_pton``, or None."""
    if not isinstance(text, str):
        return None
    try:
        return 32, int.from_bytes(socket.inet_pton(socket.AF_INET, text))
    except (OSError, ValueError):
        pass
    if len(text) > 1 and text[0] == "[" and text[-1] == "]":
        text = text[1:-1]
    try:
        return 128, int.from_bytes(socket.inet_pton(socket.AF_INET6, text))
    except (OSError, ValueError):
        return None


class IpMatcher:
    """A set of addresses and blocks. An entry without a readable mask stands for one address."""

    __slots__ = ("_blocks", "_cache", "_everything", "blocks")

    def __init__(self, entries: Sequence[object]) -> None:
        """Raise ValueError naming the first entry that is no address."""
        self.blocks = tuple(str(entry) for entry in entries)
        self._everything: set[int] = set()
        blocks: dict[tuple[int, int], set[int]] = {}
        for entry in entries:
            if not isinstance(entry, str):
                raise ValueError(f"invalid ip address: {entry!r}")
            text, slash, mask_text = entry.partition("/")
            parsed = parse_address(text)
            if parsed is None:
                raise ValueError(f"invalid ip address: {text}")
            bits, value = parsed
            number = to_number(mask_text) if slash else None
            mask = bits if number is None else int(number)
            if not 0 <= mask <= bits:
                raise ValueError(f"invalid mask of ip address: {entry}")
            if mask == 0:
                self._everything.add(bits)
            else:
                blocks.setdefault((bits, mask), set()).add(value >> (bits - mask))
        self._blocks = tuple((bits, bits - mask, values) for (bits, mask), values in blocks.items())
        self._cache: dict[str, bool] = {}

    def match(self, address: object) -> bool:
        """True when *address* lies in a block of its own family; anything that is no address is False."""
        if not isinstance(address, str):
            return False
        known = self._cache.get(address)
        if known is None:
            if len(self._cache) >= 65536:
                self._cache.clear()  # bounded: a request file may hold a million clients
            known = self._cache[address] = self._match(address)
        return known

    def _match(self, address: str) -> bool:
        parsed = parse_address(address)
        if parsed is None:
            return False
        bits, value = parsed
        if bits in self._everything:
            return True
        return any(b == bits and (value >> shift) in values for b, shift, values in self._blocks)
