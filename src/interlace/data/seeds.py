"""Seeds for independent random streams, all derived from the one seed of a run."""

import hashlib


def derive_seed(seed: int, *names: str) -> int:
    """Return a 64-bit seed for the stream that `names` name; the same on every machine.

    The first eight bytes (big-endian) of SHA-256 over the seed and the names, NUL-separated, so
    that no two streams share their draws and none depends on the order in which they are made.
    """
    text = "\0".join([str(int(seed)), *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
