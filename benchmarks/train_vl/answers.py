"""Draws docs/vision.png: pictures that no run saw, the tiles that the tower sees of each, what the model answers.

    python -m benchmarks.train_vl.answers [--checkpoint=runs/vl/stage2] [--out=docs/vision.png]

Every answer is what `mm01-generate --image=... --temperature=0` prints; a wrong one is drawn as it is, in red.
"""

import pathlib
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.train_vl.questions import TASKS, Question
from mm01_jax import loading
from mm01_jax.config import VisionConfig
from mm01_jax.data.images.processor import make_tiles
from mm01_jax.inference.sampling import Sampling
from mm01_jax.inference.text import generate
from tests.command_line import Parser

ASKED = ("digit", "larger", "colour", "count")
SEED = 11  # of the questions: another one draws others
ROW, GAP, WIDTH, ZOOM = 108, 10, 760, 4
INK, WRONG, LINE = (36, 41, 47), (190, 30, 30), (208, 215, 222)


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.train_vl.answers", __doc__)
    parser.add_argument("--checkpoint", default="runs/vl/stage2")
    parser.add_argument("--out", default="docs/vision.png")
    given = parser.parse_args(argv)
    loaded, random = loading.load(given.checkpoint), np.random.default_rng(SEED)
    asked = [TASKS[task](random, True) for task in ASKED]
    answers = [answer(loaded, question) for question in asked]
    picture = drawn(asked, answers, loaded.config.vision)
    picture.quantize(96).save(given.out, optimize=True)
    for question, text in zip(asked, answers, strict=True):
        print(f"{question.words} {text} (is {question.answer})")
    print(f"{given.out}: {picture.width} x {picture.height} pixels, {pathlib.Path(given.out).stat().st_size:,} bytes")
    return 0


def answer(loaded: loading.Loaded, question: Question) -> str:
    prompt, files = "<image>" * len(question.pictures) + question.words, [[p.png for p in question.pictures]]
    sampling = Sampling(temperature=0.0)
    return generate(loaded.model, loaded.tokenizer, [prompt], max_tokens=12, sampling=sampling, images=files)[0]


def drawn(asked: list[Question], answers: list[str], vision: VisionConfig) -> Image.Image:
    """A row a question: its images, their tiles (the thumbnail first), question and answer."""
    paper = Image.new("RGB", (WIDTH, ROW * len(asked) + 30), "white")
    pen, font = ImageDraw.Draw(paper), ImageFont.load_default(16)
    for x, title in ((GAP, "images"), (240, "tiles, the thumbnail first"), (590, "question and answer")):
        pen.text((x, 6), title, (101, 109, 118), font)
    for row, (question, text) in enumerate(zip(asked, answers, strict=True)):
        top = 30 + ROW * row
        pen.line((0, top, WIDTH, top), LINE)
        x = GAP
        for picture in question.pictures:
            x = _paste(paper, picture.image, x, top, 2)
        x = 240
        for picture in question.pictures:
            for tile in make_tiles(picture.image, vision, "a picture"):
                x = _paste(paper, Image.fromarray(tile), x, top, ZOOM)
            x += GAP
        pen.text((590, top + 22), question.words, INK, font)
        pen.text((590, top + 46), text, INK if text == question.answer else WRONG, font)
    return paper


def _paste(paper: Image.Image, image: Image.Image, x: int, top: int, zoom: int) -> int:
    """Where the next one may begin."""
    large = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    paper.paste(large, (x, top + (ROW - large.height) // 2))
    return x + large.width + 4


if __name__ == "__main__":
    sys.exit(main())
