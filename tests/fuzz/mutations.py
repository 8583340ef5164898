"""Changes that any kind of file may suffer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

EXTREMES = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63)
"""Numbers that readers trip over; each is cut to the bytes that it is written to."""
Mutation = Callable[[bytearray, random.Random], None]


def flip_bits(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 1, 4, 32))):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def set_number(content: bytearray, draw: random.Random) -> None:
    """Writes an extreme number of 1 to 8 bytes somewhere, mostly near the beginning."""
    size = draw.choice((1, 2, 4, 8))
    end = len(content) if draw.random() < 0.4 else min(len(content), 128)
    at = draw.randrange(end)
    value = (draw.choice(EXTREMES) - draw.choice((0, 0, 1))) % 256**size
    content[at : at + size] = value.to_bytes(size, draw.choice(("little", "big")))


def cut(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def take_out(content: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(content))
    del content[at : at + draw.choice((1, 16, 512, 4096))]


def repeat(content: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(content))
    piece = content[at : at + draw.choice((1, 16, 512, 4096))]
    content[at:at] = piece * draw.choice((1, 1, 50))


def splice(others: Sequence[bytes]) -> Mutation:
    """Makes a mutation that puts a piece of another file in place of one of this."""

    def mutate(content: bytearray, draw: random.Random) -> None:
        other = draw.choice(others)
        at, begin = draw.randrange(len(content)), draw.randrange(len(other))
        size = draw.choice((16, 512, 4096))
        content[at : at + size] = other[begin : begin + size]

    return mutate


def mutated(content: bytes, mutations: Sequence[Mutation], draw: random.Random) -> bytes:
    """Applies one to three mutations."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 3))):
        if changed:
            draw.choice(mutations)(changed, draw)
    return bytes(changed)
