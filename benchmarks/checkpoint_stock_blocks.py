"""Which blocks Orbax's own array format makes when it is asked for blocks of one logical chunk's bytes.

python -m benchmarks.checkpoint_stock_blocks
"""

import json
import math
import pathlib
import tempfile

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

SHAPE, AXES = (2, 3, 4, 64, 96), (None, None, "expert", "tensor", "sequence")


def main() -> None:
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
    print(f"array {SHAPE}, shard {shard}, asked for {(1, 1, 1, *shard[3:])}")
    print("got", [codec["configuration"]["chunk_shape"] for codec in codecs], codecs[0]["configuration"]["codecs"])


if __name__ == "__main__":
    main()
