"""One small model evaluated on any mesh: logits, loss, router statistics and every weight's gradient.

With a `vision` it is a VL model, and tokens of every row are patches of the row's tiles and newlines.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mm01_jax import sharding
from mm01_jax.config import MeshConfig, ModelConfig, Rules, VisionConfig
from mm01_jax.data.batch import Batch
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.layers import shardings
from mm01_jax.model.multimodal import VLModel, embeddings
from mm01_jax.model.weights import for_product
from mm01_jax.parallel import collectives, sequence_layout
from mm01_jax.parallel.vocabulary import cross_entropy
from tests.model.jax_model import compiled, float64_operations, leaf_path
from tests.small import Variant

MODEL = ModelConfig(
    vocab_size=48,
    embed_dim=16,
    num_periods=1,
    period=("lightning", "softmax"),
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rotary_dim=4,
    rope_theta=100.0,
    num_experts=8,
    num_experts_per_token=2,
    expert_dim=16,
    lightning_alpha=1.5,
    softmax_alpha=1.25,
    experts_alpha=1.75,
)
VARIANT = Variant(MODEL)
BALANCE, Z = 3.0, 0.1  # every term of the loss moves the router's gradient visibly
ROWS, LENGTH, TILES = 8, 32, 4
# Documents as (id, tokens); id -1 is padding. Shards of a sequence axis of 2, 4, 8 begin at multiples of 16, 8, 4.
DOCUMENTS = (
    ((0, 32),),  # one document over every shard
    ((0, 4), (1, 4), (2, 8), (3, 16)),  # boundaries at the edges of shards only
    ((3, 5), (1, 1), (2, 1), (0, 14), (4, 11)),  # boundaries inside shards, several in one
    ((-1, 9), (0, 11), (-1, 12)),  # shards with nothing but padding, before and after
    ((5, 3), (-1, 10), (5, 9), (2, 2), (-1, 4), (2, 4)),  # padding inside a document, over a whole shard
    ((-1, 32),),  # a row of padding
    tuple((i, 1) for i in range(12)) + ((-1, 1), (12, 19)),  # documents of one token
    ((7, 15), (8, 17)),  # a boundary one token before an edge
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one mesh computed, as NumPy on the host."""

    logits: np.ndarray
    loss: np.ndarray
    stats: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]


def batch() -> Batch:
    rng = np.random.default_rng(7)
    segments = np.array([[i for i, n in row for _ in range(n)] for row in DOCUMENTS], np.int32)
    positions = np.zeros_like(segments)
    for row, ids in enumerate(segments):
        seen: dict[int, int] = {}
        for t, i in enumerate(ids):
            positions[row, t] = seen.get(i, 0) if i >= 0 else 0
            seen[i] = seen.get(i, 0) + 1
    tokens, targets = rng.integers(MODEL.vocab_size, size=(2, ROWS, LENGTH)).astype(np.int32)
    weights = ((segments >= 0) & (rng.random(segments.shape) < 0.9)).astype(np.float32)
    return Batch(tokens=tokens, targets=targets, positions=positions, segments=segments, weights=weights)


def batch_with_images(vision: VisionConfig) -> Batch:
    """The same rows, two of five tokens of which are patches of the row's tiles or newlines."""
    rng, text = np.random.default_rng(8), batch()
    tiles = rng.standard_normal((ROWS, TILES, 3, vision.image_size, vision.image_size)).astype(np.float32)
    index = rng.integers(0, 1 + TILES * vision.num_patches, size=text.tokens.shape)
    index = np.where(rng.random(index.shape) < 0.4, index, -1).astype(np.int32)
    return text._replace(tiles=tiles, image_index=index)


def evaluate(
    mesh: MeshConfig, variant: Variant = VARIANT, widths: int = 0, vision: VisionConfig | None = None
) -> Evaluation:
    """One forward and backward on the first devices of this process.

    `widths` permutes the model width and the experts' width, weights and gradients alike: the same function, its sums
    in another order.
    """
    size = mesh.data * mesh.expert * mesh.tensor * mesh.sequence
    devices = sharding.make_mesh(mesh, jax.devices()[:size])
    with jax.set_mesh(devices):
        model = _model(variant, mesh.rules, devices, widths, vision)
        put = functools.partial(jax.device_put, device=sharding.named(devices, mesh.rules, "batch", "seq"))
        order = sequence_layout.order(LENGTH, mesh, variant.compute.sequence_layout)
        arrays = batch() if vision is None else batch_with_images(vision)
        tiles = None if vision is None else put(arrays.tiles)
        arrays = jax.tree.map(lambda array: put(array[:, order]), arrays._replace(tiles=None))._replace(tiles=tiles)
        with collectives.made(variant.compute.collectives):
            (loss, (logits, stats)), gradients = _value_and_gradient(model, arrays)
        flat = jax.tree_util.tree_leaves_with_path(gradients, is_leaf=lambda x: isinstance(x, nnx.Variable))
        return Evaluation(
            logits=np.asarray(logits)[:, np.argsort(order)],
            loss=np.asarray(loss),
            stats={name: np.asarray(value) for name, value in vars(stats).items() if value is not None},
            gradients={leaf_path(path): _permuted(np.asarray(w[...]), w, widths, back=True) for path, w in flat},
        )


@functools.cache
def exact(variant: Variant = VARIANT, vision: VisionConfig | None = None) -> Evaluation:
    """The same in float64 on one device, kernel operations replaced by their definitions."""
    with float64_operations():
        return evaluate(MeshConfig(), variant.replace(dtype="float64", param_dtype="float64"), vision=vision)


def total_loss(model: TextModel | VLModel, arrays: Batch, logits: bool = True):
    """(loss, (logits or None, router statistics)); the loss has every term that training has."""
    x = embeddings(model, arrays.tokens, arrays.tiles, arrays.image_index)
    hidden, _, stats = model.forward(x, arrays.positions, arrays.segments)
    wide = np.promote_types(hidden.dtype, np.float32)
    head, weights = for_product(model.head, hidden.dtype, model.rules), arrays.weights.astype(wide)
    total = cross_entropy(hidden, head, arrays.targets, weights, chunk=16, rules=model.rules)
    tokens_L = stats.tokens.astype(wide)
    share_LE = stats.assigned.astype(wide) / tokens_L[:, None]
    balance = jnp.sum(share_LE * stats.probability) / (tokens_L[0] * share_LE.shape[1])
    loss = total / weights.sum() + BALANCE * balance + Z * jnp.sum(stats.z_square / tokens_L)
    return loss, (model.logits(hidden) if logits else None, stats)


_value_and_gradient = compiled(jax.value_and_grad(total_loss, has_aux=True))


def _permuted(value: np.ndarray, weight: nnx.Variable, order: int, *, back: bool = False) -> np.ndarray:
    """A weight's array with its widths in the order numbered `order`, or out of it; 0 changes nothing."""
    for axis, name in enumerate(weight.get_metadata()["axes"]):
        width = {"embed": "embed", "act_embed": "embed", "ffn": "ffn"}.get(name)
        if order and width:
            seed = (order, len(width))
            permutation = np.random.default_rng(seed).permutation(value.shape[axis])
            value = np.take(value, np.argsort(permutation) if back else permutation, axis)
    return value


def _model(variant: Variant, rules: Rules, devices, order: int, vision: VisionConfig | None) -> TextModel | VLModel:
    """The model with the same weights whatever the mesh and dtype: NumPy's, rounded to float32."""
    rng = np.random.default_rng(3)

    def make() -> TextModel | VLModel:
        rngs = nnx.Rngs(params=0)
        return TextModel(*variant, rules, rngs=rngs) if vision is None else VLModel(*variant, rules, vision, rngs=rngs)

    empty = jax.eval_shape(make)

    def fill(path, weight: nnx.Variable, place: nnx.Variable) -> nnx.Variable:
        shape = weight.shape
        value = rng.normal(size=shape).astype(np.float32)
        value = 1 + 0.1 * value if "norm" in leaf_path(path) else value * (2.0 / sum(shape[-2:])) ** 0.5
        value = _permuted(value, weight, order)
        return weight.replace(jax.device_put(value.astype(variant.compute.param_dtype), place.get_value()))

    is_weight = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    return jax.tree_util.tree_map_with_path(fill, empty, shardings(empty, devices, rules), is_leaf=is_weight)
