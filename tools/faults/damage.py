"""Flipped bits and torn ends: what reads a damaged file must refuse it, or read what was written."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

REFUSED, UNHARMED, WRONG = "refused", "unharmed", "read wrong"


def flipped(content: bytes, chance: random.Random) -> bytes:
    """With one bit changed."""
    changed = bytearray(content)
    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def torn(content: bytes, chance: random.Random) -> bytes:
    """Cut off somewhere."""
    return content[: chance.randrange(len(content))]


def damage(
    file: Path,
    change: Callable[[bytes, random.Random], bytes],
    read: Callable[[], object],
    refusal: type[Exception],
    times: int,
    chance: random.Random,
    after: Callable[[], None] = lambda: None,
) -> tuple[Counter, str]:
    """How often `read` refused the changed file, read what it reads from the whole one, or something else; and one of
    the refusals. Any other exception is raised on. `after` is called with the whole file back in its place.
    """
    content = file.read_bytes()
    wanted = read()
    counts, line = Counter(), ""
    for _ in range(times):
        file.write_bytes(change(content, chance))
        try:
            counts[UNHARMED if read() == wanted else WRONG] += 1
        except refusal as error:
            counts[REFUSED] += 1
            line = str(error)
            assert line, "a refusal that says nothing"
            assert len(line.splitlines()) == 1, line
        file.write_bytes(content)
        after()
    return counts, line
