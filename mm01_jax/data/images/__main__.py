"""What MiniMax-VL-01 makes of images: their tiles, map and tokens, and what each tile's pixels hash to.

  python -m mm01_jax.data.images --describe a.png b.jpg
  python -m mm01_jax.data.images --describe a.png --json

Exit codes: 0 done, 2 what was typed is wrong, 3 bad checkpoint or data, 74 a full or broken disk,
130 interrupted.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from mm01_jax import arguments, command
from mm01_jax.config import VisionConfig, command_line
from mm01_jax.data.images.decoding import decode, orientation
from mm01_jax.data.images.opening import open_image
from mm01_jax.data.images.processor import layout_of, make_tiles, normalise
from mm01_jax.files import shown
from mm01_jax.flag import Command, Flag

COMMAND = Command(
    name="mm01_jax.data.images",
    doc=__doc__,
    flags=(
        Flag("describe", "describe each of the files that are named", bool),
        Flag("json", "a JSON list instead of a line each", bool),
        Flag("config", "whose tiles", default="vl_01", example="vl_tiny"),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return command.run(_run, argv, name=COMMAND.name)


def _run(argv: Sequence[str]) -> None:
    files = [argument for argument in argv if not argument.startswith("-")]
    given = arguments.read(COMMAND, [argument for argument in argv if argument.startswith("-")])
    if not given.describe or not files:
        raise ValueError("what is to be described is not said; e.g. --describe a.png b.jpg")
    if "" in files:
        raise ValueError("--describe: got ''; allowed: paths of pictures; e.g. --describe a.png b.jpg")
    vision = command_line.load_config(given.config).vision
    if vision is None:
        raise ValueError(f"--config={given.config} has no vision; one that has is vl_01")
    found = [describe(path, vision) for path in files]
    print(json.dumps(found, indent=1) if given.json else "\n".join(map(_line, found)))


def describe(path: str, vision: VisionConfig) -> dict[str, Any]:
    """Sizes in pixels and tokens, and the SHA-256 of each tile, thumbnail first: as bytes, and as float32 pixels."""
    name = shown(path)
    with open_image(path, name) as image:
        layout, side = layout_of(image.size, vision, name), vision.image_size
        decoded = decode(image, name)
        tiles = make_tiles(decoded, vision, name)
        turned = orientation(decoded, name)
        width, height, mode = *decoded.size, decoded.mode
    found = {
        "name": path,
        "W": width,
        "H": height,
        "mode": mode,
        "best_wh": [count * side for count in layout.grid],
        "tiles": layout.num_tiles,
        "map_hw": list(reversed(layout.map_size)),
        "tokens": layout.num_tokens,
        "u8_sha256": _digests(tiles),
        "f32_sha256": _digests(normalise(tiles)),
    }
    return found if turned in (None, 1) else found | {"exif_orientation_ignored": turned}


def _digests(tiles: np.ndarray) -> list[str]:
    return [hashlib.sha256(np.ascontiguousarray(tile).tobytes()).hexdigest() for tile in tiles]


def _line(found: dict[str, Any]) -> str:
    (across, down), (rows, columns) = found["best_wh"], found["map_hw"]
    line = (
        f"{shown(found['name'])}: {found['W']} x {found['H']} {found['mode']}, canvas {across} x {down}, "
        f"{found['tiles']} tiles, map {columns} x {rows}, {found['tokens']:,} tokens"
    )
    turned = found.get("exif_orientation_ignored")
    return line if turned is None else f"{line}; its EXIF orientation {turned} is ignored"


if __name__ == "__main__":
    sys.exit(main())
