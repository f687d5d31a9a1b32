"""The configuration of a run: frozen dataclasses, every field with its type.

A config is a value: complete, typed, checked by `rules.check`, saved as JSON beside every checkpoint.
The README has the letters used in comments (M periods, L layers, D model width, N heads, ...).
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from typing import ClassVar, Literal

MixerKind = Literal["lightning", "softmax"]
SequenceLayout = Literal["contiguous", "zigzag"]
MESH_AXES = ("data", "expert", "tensor", "sequence")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the text model is: sizes, layer kinds, residual constants, routing (paper section 2)."""

    vocab_size: int  # V, rows of the embedding and of the head
    embed_dim: int  # D
    num_periods: int  # M, how often `period` repeats
    period: tuple[MixerKind, ...]  # the layer kinds of one period, in order
    num_heads: int  # N, lightning heads and softmax query heads
    num_kv_heads: int  # K, softmax key/value heads
    head_dim: int  # H
    rotary_dim: int  # leading dims of each softmax head that RoPE rotates
    rope_theta: float = 10_000_000.0
    num_experts: int  # E
    num_experts_per_token: int  # A, top-k
    expert_dim: int  # F, width of one expert
    norm_eps: float = 1e-5  # layer norms and final norm
    lightning_norm_eps: float = 1e-6  # the norm inside lightning attention; the released config.json does not have it
    # DeepNorm residual h' = alpha * norm(h) + beta * f(norm(h)), per kind of sub-layer.
    lightning_alpha: float = 1.0
    lightning_beta: float = 1.0
    softmax_alpha: float = 1.0
    softmax_beta: float = 1.0
    experts_alpha: float = 1.0
    experts_beta: float = 1.0
    # Expert routing. `dropless` never drops; `capacity` drops assignments beyond
    # capacity_factor * tokens * A / E of an expert (paper 2.1).
    routing: Literal["dropless", "capacity"] = "dropless"
    capacity_factor: float = 1.25
    # Which tokens share one capacity: the global microbatch (the paper's global router), or one expert group's alone.
    capacity_scope: Literal["global", "expert_group"] = "global"

    @property
    def num_layers(self) -> int:
        return self.num_periods * len(self.period)

    @property
    def stacks(self) -> tuple[tuple[MixerKind, int], ...]:
        """(kind, count) of each maximal stretch of equal layers inside a period."""
        return tuple((kind, len(list(group))) for kind, group in itertools.groupby(self.period))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How the model is computed: other values change speed, memory and rounding, not what the model is."""

    # Compute dtype of activations and matmul operands. Norm statistics, softmax, states and logits are float32.
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    param_dtype: Literal["bfloat16", "float32"] = "float32"  # of the weights that a training step holds
    # In which type devices sum the gradients of weights; auto: in `dtype`, as they are computed. Float32 sends twice
    # the bytes of bfloat16 and sums what left the products unrounded.
    reduce_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    # Matrices kept as int8 with a scale a column, for inference alone: those of experts, or the attention's as well.
    quantize: Literal["none", "int8", "int8_attention"] = "none"
    # What a layer keeps for its backward pass: all, what `pallas_kernels/kept.py` names, products, or its input alone.
    # Auto is the most that the memory holds, settled before training (`model/remat.py`), else full.
    remat: Literal["auto", "none", "named", "dots", "full"] = "auto"
    # Dropless buffers as a multiple of the balanced load; None is the worst case. Overflow refuses the step.
    dropless_bound: float | None = None
    # The same of an expert shard's rows, which even each other out; None: as of an expert.
    dropless_shard_bound: float | None = None
    # Groups that a device's tokens are cut into, so that one group's exchange overlaps another's compute (paper 4.1).
    exchange_groups: int = 1
    # How rows travel between expert shards: buffers whole, or only the rows in them where a start-up check of the mesh
    # finds that right and faster (auto; without the check it is padded); or all tokens to every shard (gathered), which
    # sends no more where shards are as few as a token's choices.
    exchange: Literal["auto", "padded", "ragged", "gathered"] = "auto"
    # How devices exchange floats in training: by XLA's collectives, or as copies by the copy engines of GPUs, which
    # leave the multiprocessors to what runs beside them; sums arrive in parts and are added up in float32.
    collectives: Literal["auto", "copies"] = "auto"
    # How queries meet keys on other sequence shards: all keys gathered, or passed around a ring; auto counts bytes.
    sequence_attention: Literal["auto", "gather", "ring"] = "auto"
    # Which stretches of a row a sequence shard holds: one, or an early one and a late one, which balances causality.
    sequence_layout: SequenceLayout = "contiguous"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """How MiniMax-VL-01 sees: the vision transformer, whose projector has the text model's width, and its tiles."""

    embed_dim: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    image_size: int  # pixels along a side of a tile
    patch_size: int
    norm_eps: float = 1e-5
    # What an image may be cut into: (columns, rows) of tiles, in the order that decides between equals.
    grids: tuple[tuple[int, int], ...] = tuple(
        (columns, rows)
        for columns, most_rows in ((1, 6), (2, 6), (3, 6), (4, 4), (5, 3), (6, 3))
        for rows in range(1, most_rows + 1)
    )
    image_token: int = 200_025  # the id of `<image>`, which stands at every token that an image takes

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """Logical axis -> mesh axes. One field per logical axis that can be cut; `()` replicates."""

    batch: tuple[str, ...] = ("data", "expert")
    seq: tuple[str, ...] = ("sequence",)
    act_embed: tuple[str, ...] = ()
    # Beyond `seq`: positions between mixers and in the experts, whole again for a mixer. Over `tensor` norms, residuals
    # and experts work on a slice of the row, and a mixer's result is summed into slices; `ffn` is () then.
    act_seq: tuple[str, ...] = ()
    act_batch: tuple[str, ...] = ()  # beyond `batch`: the same of whole rows, where there are enough
    embed: tuple[str, ...] = ("data",)
    heads: tuple[str, ...] = ("tensor",)
    kv_heads: tuple[str, ...] = ("tensor",)
    ffn: tuple[str, ...] = ("tensor",)
    vocab: tuple[str, ...] = ("tensor",)
    expert: tuple[str, ...] = ("expert",)
    # Never cut, so no options: a scan walks over the stacks, whose lengths differ; heads are cut whole; patches are 577
    # with the class token, a prime.
    period: ClassVar[tuple[str, ...]] = ()
    layer: ClassVar[tuple[str, ...]] = ()
    head_dim: ClassVar[tuple[str, ...]] = ()
    patch: ClassVar[tuple[str, ...]] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the four mesh axes; their product is the number of devices."""

    data: int = 1
    expert: int = 1
    tensor: int = 1
    sequence: int = 1
    rules: Rules = Rules()

    def size(self, mesh_axes: Iterable[str]) -> int:
        """Devices along these mesh axes together."""
        return math.prod(getattr(self, axis) for axis in mesh_axes)

    def shards(self, *logical_axes: str) -> int:
        """Over how many devices the rules cut these logical axes together."""
        return self.size(axis for name in logical_axes for axis in getattr(self.rules, name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where text comes from and how it becomes tokens."""

    # "stdlib", "recall:4k" (data/recall.py), a path or glob of files of text, or a folder that mm01-tokenize made
    source: str = "stdlib"
    tokenizer: str = "bytes"  # "bytes", or a path to a tokenizer.json (extra: tokenizers)
    text_field: str = "text"  # the key of a jsonl record
    # What a record is: a text, all of it learnt; a conversation, some with images, of which the answers are learnt; a
    # pair of answers, of which the preferred one is.
    records: Literal["text", "conversations", "pairs"] = "text"
    template: Literal["official", "plain"] = "official"  # of conversations; plain has their texts alone
    # Other conversations, mixed in: one row of them after each `rows_between` rows of `source` (paper 5: 20 to 1).
    mixed_in: str | None = None
    rows_between: int = 20
    held_out: float = 0.02  # fraction of documents kept for evaluation, never trained on
    seed: int = 0
    max_bad_records: int = 0  # unreadable records skipped and counted before the run is refused
    prefetch: int = 2  # batches prepared ahead


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over steps (paper 4.2): linear warm-up, constant, step down, exponential decay."""

    peak: float = 2e-4
    warmup_steps: int = 500
    step_down_at: int | None = None  # step at which `peak` becomes `stepped`
    stepped: float | None = None
    decay_start: int | None = None  # exponential decay from here to the last step
    final: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (paper 4.2)."""

    schedule: ScheduleConfig = ScheduleConfig()
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    # Parts of a model with vision that stay as they are; they take neither gradients nor moments.
    frozen: tuple[Literal["text", "vision", "projector", "image_newline"], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how large, what is optimised."""

    steps: int
    batch_size: int  # rows of one step (before any ramp step), all hosts together
    sequence_length: int  # S, tokens of a row
    # Batch-size ramp: (step, batch_size) from that step on; steps rise.
    batch_ramp: tuple[tuple[int, int], ...] = ()
    num_microbatches: int = 1  # gradient accumulation
    # What is minimised: cross-entropy, or for a tower's own pre-training that of captions and a contrastive loss.
    objective: Literal["next_token", "captions_and_contrast"] = "next_token"
    seed: int = 0
    loss_chunk: int = 512  # tokens whose logits are held at a time
    balance_loss: Literal["paper", "transformers", "none"] = "paper"  # two normalisations, named apart (model.md D14)
    balance_coef: float = 0.01
    z_loss_coef: float = 0.0
    max_nonfinite_steps: int = 3  # refused steps in a row before the run stops
    eval_every: int = 200
    eval_batches: int = 8
    checkpoint_every: int = 200
    keep_checkpoints: int = 3
    log_every: int = 1
    tensorboard: bool = True  # written where the extra is installed
    profile: str | None = None  # "START:STOP": a trace of these steps, STOP not among them, as in Python

    def batch_size_at(self, step: int) -> int:
        """Rows of the step after `step` steps."""
        return [self.batch_size, *(size for start, size in self.batch_ramp if start <= step)][-1]

    def rows_before(self, step: int) -> int:
        """Rows that the first `step` steps take."""
        starts, sizes = zip((0, self.batch_size), *self.batch_ramp, strict=True)
        return sum(
            size * max(min(step, stop) - start, 0)
            for start, stop, size in zip(starts, (*starts[1:], step), sizes, strict=True)
        )

    @property
    def profile_steps(self) -> range:
        """The steps that are traced, counted from 1."""
        return range(*map(int, self.profile.split(":"))) if self.profile else range(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides the numbers of a run."""

    name: str
    model: ModelConfig
    compute: ComputeConfig = ComputeConfig()
    vision: VisionConfig | None = None
    mesh: MeshConfig = MeshConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig

    @property
    def device_tokens(self) -> int:
        """Tokens of one microbatch on one device."""
        train = self.train
        return train.batch_size * train.sequence_length // (self.mesh.shards("batch", "seq") * train.num_microbatches)
