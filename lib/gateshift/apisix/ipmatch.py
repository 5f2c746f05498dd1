"""Addresses and CIDR blocks as lua-resty-ipmatcher 0.6.1 reads and matches them."""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence

from gateshift.apisix.lua import to_number

__all__ = ["IpMatcher", "parse_address"]

_WORD = 0xFFFFFFFF


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


def _selection(bits: int, mask: float) -> int:
    """The bits of an address that the library compares under *mask*, as a number with those bits set.

    A mask outside the family's range is not refused: LuaJIT's ``bit.rshift`` takes the low five bits of its
    distance, so 10.0.0.0/33 compares one bit; IPv6 is compared in words of 32 bits, so /200 is /128.
    """
    selected, count = 0, 0
    while count < bits // 32:
        count += 1
        distance = round(32 - min(mask, 32)) if bits == 128 else round(32 - mask)
        selected = selected << 32 | (_WORD << (distance & 31)) & _WORD
        mask -= 32
        if mask <= 0:
            break
    return selected << (bits - 32 * count)


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
            mask = bits if number is None else number
            if not math.isfinite(mask):
                raise ValueError(f"invalid mask of ip address: {entry}")
            if mask == 0:
                self._everything.add(bits)
            else:
                selected = _selection(bits, mask)
                blocks.setdefault((bits, selected), set()).add(value & selected)
        self._blocks = tuple((bits, selected, values) for (bits, selected), values in blocks.items())
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
        return any(b == bits and (value & selected) in values for b, selected, values in self._blocks)
