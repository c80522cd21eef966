"""Random streams that depend on (seed, purpose, index) alone: a resumed or stacked run draws the same numbers."""

import hashlib

# The distortions of the test set: the same for every model, seed and protocol.
TEST_SEED = 20151


def stream_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A 63-bit generator seed, independent between seeds, purposes and indices."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
