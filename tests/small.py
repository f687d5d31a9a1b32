"""The smallest of everything for tests of training and generation: a config, its weights, batches, text, a mesh."""

import dataclasses
import functools
import json
import pathlib
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from mm01_jax import sharding
from mm01_jax.config import (
    ComputeConfig,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    fields,
)
from mm01_jax.data.batch import Batch
from mm01_jax.model.decoder import TextModel
from tests.reference.documents import PADDING, document_numbers

MODEL = ModelConfig(
    vocab_size=320,
    embed_dim=16,
    num_periods=1,
    period=("lightning", "softmax"),
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    rotary_dim=4,
    rope_theta=10_000.0,
    num_experts=4,
    num_experts_per_token=2,
    expert_dim=16,
    lightning_alpha=1.5,
    softmax_alpha=1.5,
    experts_alpha=1.5,
)
COMPUTE = ComputeConfig(dtype="float32", remat="none")


class Variant(NamedTuple):
    """A model and how it is computed."""

    config: ModelConfig
    compute: ComputeConfig = COMPUTE

    def replace(self, **changes) -> "Variant":
        """Other fields, of either."""
        names = ModelConfig.__dataclass_fields__
        return Variant(
            dataclasses.replace(self.config, **{k: v for k, v in changes.items() if k in names}),
            dataclasses.replace(self.compute, **{k: v for k, v in changes.items() if k not in names}),
        )


def config(text: pathlib.Path | str = "stdlib", **changes) -> Config:
    """A run of six steps on the file `text`; `changes` are leaves, their dots written `__`: train__steps=3."""
    found = Config(
        name="small",
        model=MODEL,
        compute=COMPUTE,
        data=DataConfig(source=str(text), held_out=0.2),
        optimizer=OptimizerConfig(schedule=ScheduleConfig(peak=1e-2, warmup_steps=3)),
        train=TrainConfig(
            steps=6,
            batch_size=2,
            sequence_length=32,
            loss_chunk=64,
            eval_every=3,
            eval_batches=2,
            checkpoint_every=2,
            keep_checkpoints=100,
        ),
    )
    return replace(found, **changes)


def replace(config: Config, **changes) -> Config:
    """Other leaves, their dots written `__`."""
    for key, value in changes.items():
        config = fields.replace(config, key.replace("__", "."), value)
    return config


def variant(**changes) -> Variant:
    return Variant(MODEL).replace(**changes)


def one_device():
    """A mesh of one device, as the context that the model runs in."""
    return jax.set_mesh(sharding.make_mesh(MeshConfig(), jax.devices()[:1]))


def use_one_device(monkeypatch) -> None:
    """Lets runs in this process see one of its devices."""
    make = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", make)
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def tree_digest(step: pathlib.Path) -> str:
    """The digest of everything that a checkpoint holds."""
    return json.loads((step / "state" / "manifest.json").read_text())["tree_sha256"]


def model(variant: Variant | None = None, seed: int = 0) -> TextModel:
    """Random weights; inside `one_device()`."""
    make = unoptimised(lambda key: TextModel(*(variant or Variant(MODEL)), MeshConfig().rules, rngs=nnx.Rngs(key)))
    return make(jax.random.key(seed))


def unoptimised(function, **options):
    """`jax.jit` for what runs for milliseconds: XLA:CPU compiles it in a fraction of the time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": "0"}, **options)


def batch(segments_BS, vocab_size: int = MODEL.vocab_size, seed: int = 0) -> Batch:
    """Random tokens packed as `segments_BS` says: positions restart with each document, a document's last token has
    no target."""
    segments = np.asarray(segments_BS, np.int32)
    documents = document_numbers(segments)
    B, S = segments.shape
    tokens = np.random.default_rng(seed).integers(vocab_size, size=(B, S)).astype(np.int32)
    positions, weights = np.zeros((B, S), np.int32), np.zeros((B, S), np.float32)
    for row in range(B):
        for document in set(documents[row].tolist()) - {PADDING}:
            (places,) = np.nonzero(documents[row] == document)
            positions[row, places] = np.arange(len(places))
            weights[row, places[:-1]] = 1.0
    targets = np.where(weights > 0, np.roll(tokens, -1, axis=1), 0).astype(np.int32)
    return Batch(tokens=tokens, targets=targets, positions=positions, segments=segments, weights=weights)


def write_text(folder: pathlib.Path, documents: int = 40, seed: int = 0) -> pathlib.Path:
    """A jsonl file of documents of a few words each, some of one byte, one longer than many rows."""
    random = np.random.default_rng(seed)
    words = ["def", "return", "self", "import", "for", "in", "range", "x", "y", "\n", "é", "0"]
    lengths = [1, 2, 400, *random.integers(5, 60, size=documents - 3)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "text.jsonl"
    lines = [
        '{"text": ' + repr(" ".join(random.choice(words, size=n))).replace("'", '"') + "}\n" for n in map(int, lengths)
    ]
    path.write_text("".join(lines), encoding="utf-8")
    return path
