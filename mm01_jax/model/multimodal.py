"""MiniMax-VL-01: the text model, and images as embeddings in its stream (paper 5; docs/model.md C).

    x_t = Embed[token_t], or the feature of a patch of one of the row's tiles, or image_newline

Which of the three stands at a token is an index table, made on the host in whole numbers (data/image_grid.py). The
text model's forward takes embeddings and knows nothing of images: they are ordinary tokens at ordinary positions.
"""

import jax
from flax import nnx

from mm01_jax.config import ComputeConfig, Config, ModelConfig, Rules, VisionConfig
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.layers import in_use, param, xavier
from mm01_jax.model.vision import Projector, VisionTower
from mm01_jax.parallel.tiles import place_features


class VLModel(nnx.Module):
    """The text model, the tower, the projector, the vector that ends a row of patches; called as a TextModel is."""

    def __init__(
        self, config: ModelConfig, compute: ComputeConfig, rules: Rules, vision: VisionConfig, *, rngs: nnx.Rngs
    ):
        D = config.embed_dim
        self.text = TextModel(config, compute, rules, rngs=rngs)
        self.vision = VisionTower(vision, compute, rules, rngs=rngs)
        self.projector = Projector(vision, config, compute, rules, rngs=rngs)
        self.image_newline = param(rngs, (D,), ("act_embed",), xavier(D, D), compute=compute)

    @jax.named_scope("vision")
    def features(self, tiles_BTCYX: jax.Array, *, training: bool = False) -> jax.Array:
        """Normalised pixels (B, T, 3, side, side) float32 -> projected features (B, T, P, D) of their patches."""
        return self.projector(self.vision(tiles_BTCYX, training=training)[:, :, 1:])

    @jax.named_scope("embed")
    def place(self, tokens_BS: jax.Array, features_BTPD: jax.Array, index_BS: jax.Array) -> jax.Array:
        """Embeddings (B, S, D) of tokens and, where the index table says so, of features of the same row's tiles."""
        x = self.text.embed_tokens(tokens_BS)
        newline = in_use(self.image_newline, x.dtype)
        return place_features(x, features_BTPD.astype(x.dtype), newline, index_BS, rules=self.rules)

    def embed_tokens(
        self, tokens_BS: jax.Array, tiles_BTCYX: jax.Array | None = None, index_BS: jax.Array | None = None
    ) -> jax.Array:
        """What the layers take in, (B, S, D); without tiles that of the text model, to the bit."""
        if tiles_BTCYX is None:
            return self.text.embed_tokens(tokens_BS)
        return self.place(tokens_BS, self.features(tiles_BTCYX, training=True), index_BS)

    def forward(self, *arguments):
        """`TextModel.forward`."""
        return self.text.forward(*arguments)

    def logits(self, hidden_BSD: jax.Array) -> jax.Array:
        """`TextModel.logits`."""
        return self.text.logits(hidden_BSD)

    def __call__(
        self,
        tokens_BS: jax.Array,
        positions_BS: jax.Array,
        segments_BS: jax.Array,
        tiles_BTCYX: jax.Array | None = None,
        index_BS: jax.Array | None = None,
    ) -> jax.Array:
        """float32 logits (B, S, V) of whole rows."""
        x = self.embed_tokens(tokens_BS, tiles_BTCYX, index_BS)
        return self.logits(self.forward(x, positions_BS, segments_BS)[0])

    @property
    def config(self) -> ModelConfig:
        return self.text.config

    @property
    def compute(self) -> ComputeConfig:
        return self.text.compute

    @property
    def rules(self) -> Rules:
        return self.text.rules

    @property
    def embed(self) -> nnx.Param:
        return self.text.embed

    @property
    def head(self) -> nnx.Param:
        return self.text.head


def build(config: Config, *, rngs: nnx.Rngs) -> TextModel | VLModel:
    """The model of a config with fresh weights, with its vision where the config has a section for it."""
    if config.vision is None:
        return TextModel(config.model, config.compute, config.mesh.rules, rngs=rngs)
    return VLModel(config.model, config.compute, config.mesh.rules, config.vision, rngs=rngs)


def embeddings(
    model: TextModel | VLModel,
    tokens_BS: jax.Array,
    tiles_BTCYX: jax.Array | None = None,
    index_BS: jax.Array | None = None,
) -> jax.Array:
    """What the layers of either model take in; a batch of text alone has neither tiles nor an index table."""
    if tiles_BTCYX is None:
        return model.embed_tokens(tokens_BS)
    return model.embed_tokens(tokens_BS, tiles_BTCYX, index_BS)
