"""Seeded choices about documents, the same on every machine and in every version of NumPy."""

import numpy as np

ORDER, HELD_OUT, ROWS = 1, 2, 3  # which choice a hash is for: equal seeds must not make them agree


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijective scramble of uint64 (the finaliser of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash64(x: np.ndarray, *salts: int) -> np.ndarray:
    """uint64 hashes of an array of uint64, one function per tuple of salts."""
    x = np.atleast_1d(np.asarray(x, np.uint64))
    for salt in salts:
        x = _mix(x + np.uint64((0x9E3779B97F4A7C15 * (salt + 1)) % 2**64))
    return x


def permutation(n: int, *salts: int) -> np.ndarray:
    """int64 (n,), one permutation per tuple of salts."""
    return np.argsort(hash64(np.arange(n, dtype=np.uint64), *salts), kind="stable")


def epoch_order(num_documents: int, seed: int, epoch: int) -> np.ndarray:
    """int64 permutation of the documents for one epoch."""
    return permutation(num_documents, ORDER, seed, epoch)


def held_out_ranks(digest_D2: np.ndarray, seed: int) -> np.ndarray:
    """uint64 (D,): where a document stands among those that may be held out, by its content alone.

    Args:
      digest_D2: uint64, the first 16 bytes of the text's sha256.
    """
    return hash64(digest_D2[:, 0] ^ hash64(digest_D2[:, 1]), HELD_OUT, seed)


def held_out_documents(rank_D: np.ndarray, fraction: float) -> np.ndarray:
    """bool (D,): the documents kept for evaluation, by their content, so equal texts are on one side.

    At least one text is held out and at least one is not, however few there are.

    Raises:
      ValueError: all documents are one text.
    """
    if fraction == 0.0:
        return np.zeros(len(rank_D), bool)
    lowest, highest = rank_D.min(), rank_D.max()
    if lowest == highest:
        raise ValueError(
            f"data.held_out={fraction} needs two different documents, the data has {len(rank_D)} of one text. "
            "Split the text into documents, or set data.held_out=0 to train without evaluation."
        )
    threshold = min(max(int(fraction * 2**64), int(lowest) + 1), int(highest))
    return rank_D < np.uint64(threshold)
