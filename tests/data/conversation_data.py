"""Small data sets of conversations with images, as tests write them."""

import io
import json
import pathlib

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from mm01_jax.config import DataConfig, VisionConfig
from mm01_jax.data.conversation_files import pack_record
from mm01_jax.data.dataset import Dataset, open_dataset

VISION = VisionConfig(
    embed_dim=8,
    num_layers=1,
    num_heads=2,
    mlp_dim=16,
    image_size=16,
    patch_size=8,
    grids=((1, 1), (1, 2), (2, 1)),
    image_token=255,
)
LENGTH = 128


def png(width: int, height: int, seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def conversation(number: int, images: int) -> list[dict]:
    return [
        {"role": "user", "content": "<image>" * images + f"what is {number}?"},
        {"role": "assistant", "content": f"it is {number}."},
    ]


def records(count: int) -> list[tuple[list[dict], list[bytes]]]:
    """Conversations of none, one or two images of several shapes."""
    random, sizes = np.random.default_rng(0), [(20, 20), (10, 30), (40, 15)]
    made = []
    for number in range(count):
        images = int(random.integers(3))
        pictures = [png(*sizes[(number + i) % 3], seed=10 * number + i) for i in range(images)]
        made.append((conversation(number, images), pictures))
    return made


def write_lines(folder: pathlib.Path, count: int = 24) -> pathlib.Path:
    """`a.jsonl` beside its images."""
    lines = []
    for number, (messages, pictures) in enumerate(records(count)):
        names = [f"images/{number}_{i}.png" for i in range(len(pictures))]
        for name, picture in zip(names, pictures, strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(picture)
        lines.append(json.dumps({"messages": messages, "images": names}))
    path = folder / "a.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def write_array_record(folder: pathlib.Path, count: int = 24) -> pathlib.Path:
    """The same, with the images inside."""
    path = folder / "a.arrayrecord"
    writer = ArrayRecordWriter(str(path), "group_size:4")
    for messages, pictures in records(count):
        writer.write(pack_record(messages, pictures))
    writer.close()
    return path


def opened(source: pathlib.Path, length: int = LENGTH, vision: VisionConfig | None = VISION, **changes) -> Dataset:
    config = DataConfig(**{"source": str(source), "records": "conversations", "held_out": 0.0} | changes)
    return open_dataset(config, length, 320, vision=vision, log=lambda line: None)
