"""The native dialect and transformers itself. Needs an interpreter with torch and transformers (extra `interop`):

    MM01_INTEROP_PYTHON=/path/to/python pytest tests/convert/test_convert_native.py

More than one, separated by ":", are all used. Without the variable this interpreter is tried; without torch, skipped.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from mm01_jax.checkpoint import CheckpointError
from mm01_jax.convert.certify import logits
from mm01_jax.convert.certify.judge import certify
from mm01_jax.convert.check import check
from mm01_jax.convert.from_torch import from_torch
from mm01_jax.convert.sources import open_source
from mm01_jax.convert.to_torch import to_torch
from mm01_jax.convert.torch import decay
from mm01_jax.convert.torch.settings import read
from mm01_jax.loading import load_model
from tests.convert import samples
from tests.reference import fixture

PEER = pathlib.Path(__file__).with_name("convert_peer.py")
QUIET = {"log": lambda line: None}
HERE = [sys.executable] if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers") else []
PYTHONS = [p for p in os.environ.get("MM01_INTEROP_PYTHON", "").split(":") if p] or HERE
interop = pytest.mark.parametrize(
    "python", PYTHONS or [pytest.param("", marks=pytest.mark.skip(reason="no interpreter with torch and transformers"))]
)


def peer(python: str, *arguments) -> str:
    """Runs the peer; its transformers version."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX", "XLA"))}
    environment |= {"HF_HUB_OFFLINE": "1"}
    command = [python, str(PEER), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> pathlib.Path:
    """The fixture's model: its released files, our checkpoint of them, and that exported to the native dialect."""
    room = tmp_path_factory.mktemp("native")
    samples.write(room / "in", samples.settings("original", fixture.CONFIG, "float32"), fixture.weights(), shards=1)
    from_torch(room / "in", room / "ours", **QUIET)
    to_torch(room / "ours", room / "native", dialect="native", **QUIET)
    np.save(room / "ids.npy", fixture.load()["ids"])
    return room


@interop
def test_exported_native_model_agrees_in_transformers_to_1e_5(python, room, tmp_path):
    version = peer(python, "logits", room / "native", room / "ids.npy", tmp_path / "out.npz", fixture.CONFIG.rotary_dim)
    got = np.load(tmp_path / "out.npz")["logits"]
    for name, want in (("ours", logits.compute(room / "ours", fixture.load()["ids"])["logits"]),
                       ("fixture", fixture.load()["logits"][None])):  # fmt: skip
        error = np.abs(got - want).max()
        print(f"transformers {version}: {error:.1e} from {name}, largest logit {np.abs(want).max():.2f}")
        assert error < 1e-5


@interop
def test_transformers_as_it_is_is_named_by_certify(python, room, tmp_path):
    peer(python, "logits", room / "native", room / "ids.npy", tmp_path / "out.npz", 0)
    verdict = certify(room / "ours", tmp_path / "out.npz", **QUIET)
    assert verdict.named == "RoPE over the whole head (D2, transformers' own class)"


@interop
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_transformers_saves_comes_in_bit_for_bit(python, dtype, room, tmp_path):
    peer(python, "save", room / "native", tmp_path / "saved", dtype)
    plain = json.loads((tmp_path / "saved" / "config.json").read_text())
    plain |= {"rotary_dim": fixture.CONFIG.rotary_dim}  # 4.x drops what its class does not know
    (tmp_path / "saved" / "config.json").write_text(json.dumps(plain))
    assert len(open_source(tmp_path / "saved").buffers) == 28
    from_torch(tmp_path / "saved", tmp_path / "ours", **QUIET)
    check(tmp_path / "saved", tmp_path / "ours", **QUIET)
    to_torch(tmp_path / "ours", tmp_path / "out", dialect="native", **QUIET)
    one, two = (
        {name: w for path in d.glob("*.safetensors") for name, w in load_file(path).items()}
        for d in (tmp_path / "saved", tmp_path / "out")
    )
    assert one.keys() == two.keys()
    weights = fixture.weights()
    assert all(one[n].tobytes() == two[n].tobytes() == weights[n].astype(dtype).tobytes() for n in weights)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exported_decay_buffers_are_those_of_the_definition(dtype):
    want = samples.decay_buffers(samples.CONFIG)
    config = read(samples.settings("native"), "config.json").config.model
    for buffer in decay.buffers(config, samples.BLOCK):
        got = decay.value(buffer, config)
        np.testing.assert_allclose(got, want[buffer.name], rtol=3e-6, atol=0, err_msg=buffer.name)
        stored = want[buffer.name].astype(dtype)
        assert decay.problem(buffer, (stored[bounds] for bounds in decay.heads(buffer)), config) is None
        assert got.shape == buffer.shape


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decay_buffers_of_another_model_are_refused_by_name(dtype, tmp_path):
    weights = samples.tensors("native", dtype=dtype)
    name = "model.layers.4.self_attn.slope_rate"
    # The slope with l/L instead of l/(L-1): 1 - 4/6 for 1 - 4/5.
    weights[name] = (weights[name].astype(np.float32) * (2 / 6) / (1 / 5)).astype(dtype)
    samples.write(tmp_path / "in", samples.settings("native", dtype=dtype), weights)
    with pytest.raises(CheckpointError, match=rf"{name}.*the decay of layer 4 is"):
        from_torch(tmp_path / "in", tmp_path / "out", **QUIET)
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match=rf"{name}.*the decay of layer 4 is"):
        load_model(tmp_path / "in")


def test_native_checkpoint_without_buffers_is_read(tmp_path):
    weights = {n: w for n, w in samples.tensors("native").items() if not n.endswith(("_decay", "slope_rate"))}
    source = samples.write(tmp_path / "in", samples.settings("native"), weights)
    from_torch(source, tmp_path / "out", **QUIET)
    check(source, tmp_path / "out", **QUIET)


def test_native_checkpoint_with_some_buffers_missing_is_refused(tmp_path):
    weights = samples.tensors("native")
    del weights["model.layers.3.self_attn.key_decay"]
    samples.write(tmp_path / "in", samples.settings("native"), weights)
    with pytest.raises(CheckpointError, match="missing model.layers.3.self_attn.key_decay"):
        open_source(tmp_path / "in")
