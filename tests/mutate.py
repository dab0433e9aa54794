"""A byte mutator: small damage to sound inputs, by a seeded generator."""

import random
from collections.abc import Iterator, Sequence

SPLICES = (
    b"\x00",
    b"\xff",
    b"\x80",
    b"{",
    b"}",
    b"[" * 40,
    b'"',
    b"-1",
    b"9" * 400,
    b"1e999",
    b"NaN",
    b"null",
    b"\r\n",
    b"\x1b[2J",
    b"../",
)
SPLICES += (
    "\u202e".encode(),
    b"*a",
    b"&a ",
    b"!!python/name:os.system ",
    b"2001-99-99",
    b"0x_",
    b": ",
    b",",
    b"\xed\xa0\x80",
    b"inf",
)


def mutants(seeds: Sequence[bytes], num: int, seed: int = 0) -> Iterator[bytes]:
    """`num` inputs, each a seed with one to six pieces flipped, cut, doubled, swapped in from another seed, or spliced in."""
    rng = random.Random(seed)
    for _ in range(num):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            _damage(data, rng, seeds)
        yield bytes(data)


def _damage(data: bytearray, rng: random.Random, seeds: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 300) + 1)  # headers lie in front
    end = min(len(data), at + rng.choice((1, 2, 4, 8, 30)))
    kind = rng.randrange(6)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at:end]
    elif kind == 2:
        data[at:at] = data[at:end] * rng.choice((1, 2, 20))
    elif kind == 3:
        other = rng.choice(seeds)
        begin = rng.randrange(len(other) + 1)
        data[at:end] = other[begin : begin + rng.choice((1, 4, 30))]
    elif kind == 4:
        data[at:end] = rng.choice(SPLICES)
    else:
        data[at:end] = bytes(rng.randrange(256) for _ in range(end - at))
