"""Which blocks Orbax's own array format makes when it is asked for blocks of one logical chunk's bytes.

python -m benchmarks.checkpoint_stock_blocks [--json=FILE]
"""

import json
import math
import pathlib
import sys
import tempfile

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from benchmarks.results import Report, add_json, processor
from tests.command_line import Parser

SHAPE, AXES = (2, 3, 4, 64, 96), (None, None, "expert", "tensor", "sequence")


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.checkpoint_stock_blocks", __doc__)
    add_json(parser)
    report = Report(parser.parse_args(argv).json, "benchmarks.checkpoint_stock_blocks", argv)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    mesh = jax.make_mesh((1, 2, 2, 2), ("data", "expert", "tensor", "sequence"))
    array = jax.device_put(np.zeros(SHAPE, np.float32), NamedSharding(mesh, PartitionSpec(*AXES)))
    shard = array.sharding.shard_shape(SHAPE)
    context = ocp.Context()
    context.array.saving.storage_options.chunk_byte_size = 4 * math.prod(shard[3:])
    context.array.saving.use_ocdbt = False  # so that the array's metadata is a file to look into
    with tempfile.TemporaryDirectory() as directory:
        with context:
            ocp.save(pathlib.Path(directory) / "step", {"gate": array})
        [path] = pathlib.Path(directory).rglob("zarr.json")
        codecs = json.loads(path.read_text())["codecs"]
    asked, got = (1, 1, 1, *shard[3:]), [codec["configuration"]["chunk_shape"] for codec in codecs]
    report.add(f"stock blocks of {SHAPE}, shard {shard}: asked for", str(asked), device=processor())
    report.add(f"stock blocks of {SHAPE}, shard {shard}: got", str(got), device=processor())
    print(f"array {SHAPE}, shard {shard}, asked for {asked}")
    print("got", got, codecs[0]["configuration"]["codecs"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
