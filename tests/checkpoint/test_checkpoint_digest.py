"""Laws of the chunk digest: what it sees, and that it never depends on where the data lies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax.checkpoint import digest

DTYPES = ("float32", "bfloat16", "float16", "int32", "uint16", "int8", "bool")


@pytest.fixture(params=(0, digest._FEW_ELEMENTS), ids=("xla", "numpy"), autouse=True)
def few(request, monkeypatch):
    """Small arrays by XLA's programs, and as they are digested."""
    monkeypatch.setattr(digest, "_FEW_ELEMENTS", request.param)


def oracle(chunk: np.ndarray) -> np.ndarray:
    """The definition in Python integers, from the module's equation."""
    word = {1: np.uint8, 2: np.uint16, 4: np.uint32}[chunk.dtype.itemsize]
    lanes = []
    for lane in range(4):
        total = 0
        for i, b in enumerate(np.ascontiguousarray(chunk).view(word).reshape(-1).tolist()):
            x = b ^ ((i * digest._G[lane] + digest._S[lane]) % 2**32)
            x = (x ^ x >> 16) * digest._M1[lane] % 2**32
            x = (x ^ x >> 15) * digest._M2[lane] % 2**32
            total += x ^ x >> 16
        lanes.append(total % 2**32)
    return np.array(lanes, np.uint32)


def random_chunk(dtype: str, shape=(5, 7)) -> np.ndarray:
    raw = np.random.default_rng(3).standard_normal(shape) * 50
    return raw.astype(jnp.dtype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_digest_equals_its_definition_in_python_integers(dtype):
    chunk = random_chunk(dtype)
    np.testing.assert_array_equal(digest.chunk_digest(chunk), oracle(chunk))
    np.testing.assert_array_equal(digest.chunk_digest(chunk[0, 0]), oracle(chunk[0, 0]))


def test_digest_of_a_fixed_array_never_changes_between_versions():
    # Part of the format on disk: a checkpoint of today must verify with the program of tomorrow.
    chunk = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert digest.chunk_digest(chunk).tobytes().hex() == "25b5063bb02166c5b06659f6b390c706"
    lanes = digest.chunk_digest(chunk)[None]
    assert digest.leaf_sha256("a/b", (1, 2, 3), "float32", lanes).startswith("68df90c5a1de219d")


def test_every_single_bit_flip_changes_every_lane():
    chunk = random_chunk("float32", (3, 4))
    before = digest.chunk_digest(chunk)
    for bit in range(chunk.nbytes * 8):
        raw = bytearray(chunk.tobytes())
        raw[bit // 8] ^= 1 << bit % 8
        after = digest.chunk_digest(np.frombuffer(bytes(raw), np.float32).reshape(3, 4))
        assert (before != after).all(), bit


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_swapped_zeroed_and_shifted_elements_change_the_digest(dtype):
    chunk = random_chunk(dtype, (16, 16))
    before = digest.chunk_digest(chunk)
    swapped, zeroed, shifted = chunk.copy(), chunk.copy(), np.roll(chunk, 1)
    swapped[[2, 9]] = chunk[[9, 2]]
    zeroed[4:6] = 0
    negated = chunk.copy()
    negated[1, :2] = -chunk[1, :2]  # two sign bits: they cancel in a sum that is linear in the bits
    for other in (swapped, zeroed, shifted, negated, chunk.T):
        assert (digest.chunk_digest(np.ascontiguousarray(other)) != before).all()


def test_digest_in_blocks_equals_digest_at_once(monkeypatch):
    chunk = random_chunk("bfloat16", (37, 5, 3))
    whole = digest.chunk_digest(chunk)
    monkeypatch.setattr(digest, "_BLOCK_ELEMENTS", 40)
    np.testing.assert_array_equal(digest.chunk_digest(chunk), whole)


def test_digest_refuses_eight_byte_elements_by_name():
    with pytest.raises(ValueError, match="dtype=float64 .* 1, 2 or 4 bytes"):
        digest._bits(jax.ShapeDtypeStruct((2,), jnp.dtype("float64")))


@pytest.mark.parametrize("spec", (("a", "b"), (None, ("a", "b")), (None, None, "b"), ()))
def test_digest_of_shards_is_that_of_the_whole(spec):
    leaf = random_chunk("bfloat16", (2, 8, 6))
    mesh = jax.make_mesh((2, 2), ("a", "b"), devices=jax.devices()[:4])
    placed = jax.device_put(leaf, jax.sharding.NamedSharding(mesh, jax.P(*spec)))
    np.testing.assert_array_equal(digest.array_digest(placed, 1), [oracle(chunk) for chunk in leaf])


def test_a_process_without_an_element_to_count_compiles_what_the_others_do(monkeypatch):
    """For GPUs XLA shares what it tries among processes: one that compiles another program waits for a day."""

    class Seen:
        """An array as a process sees it that has only second copies of its shards."""

        addressable_shards = ()
        shape, size = (3, 8), 24

        def __init__(self, sharding):
            self.sharding = sharding

    class Compiled(Exception):
        pass

    def compiled(*args, **kwargs):
        raise Compiled

    monkeypatch.setattr(digest, "_FEW_ELEMENTS", 10)
    monkeypatch.setattr(digest, "_mesh_digest", compiled)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    with pytest.raises(Compiled):
        digest.array_digest(Seen(jax.NamedSharding(mesh, jax.P())), 1)
