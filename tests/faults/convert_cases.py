"""Bad PyTorch directories: a sound one, spoiled in one way each; what the command says is in convert_bad_inputs.md.

A case is (title, spoil(directory), what the message must contain, flags of the command).
"""

import os
import pathlib
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file

from tests.convert import samples
from tests.faults.convert_spoil import (
    INDEX,
    NORM,
    OTHER,
    SHARD,
    drop_field,
    duplicate_key,
    edit_bytes,
    edit_config,
    edit_header,
    edit_json,
    edit_tensors,
    first,
    flipped_in_name,
    negative,
    only_pickles,
    overlap,
    rename,
    replace_by,
    set_value,
    shard_name,
    swap_shapes,
    swap_two,
    truncated,
    with_header,
    write_sha256s,
)


class Case(NamedTuple):
    title: str
    spoil: Callable[[pathlib.Path], None]
    says: tuple[str, ...]
    flags: tuple[str, ...] = ()


HUGE = struct.pack("<Q", 2**63)
DEEP = b"[" * 100_000
_FLOAT32 = ("config.json", "torch_dtype (or dtype) = float32, but 117 of 117 tensors are bfloat16")
STRUCTURE = (
    Case("a shard cut in its data", edit_bytes(lambda raw: raw[:-5]), (SHARD, "is cut")),
    Case("a shard cut in its header", truncated(40), (SHARD, "header of")),
    Case("a shard of 3 bytes", truncated(3), (SHARD, "3 bytes")),
    Case("an empty shard", truncated(0), (SHARD, "0 bytes")),
    Case("bytes appended to a shard", edit_bytes(lambda raw: raw + b"\0" * 9), (SHARD, "belong to no tensor")),
    Case("a header length of 2^63", edit_bytes(lambda raw: HUGE + raw[8:]), (SHARD, "header of 9223372036854775808")),
    Case("a header that is no JSON", edit_bytes(lambda raw: with_header("{", b"")), (SHARD, "not valid JSON")),
    Case("a header that is a list", edit_bytes(lambda raw: with_header("[]", b"")), (SHARD, "JSON of a list")),
    Case("a header nested 100,000 deep", edit_bytes(lambda raw: with_header(DEEP, b"")), (SHARD, "not valid JSON")),
    Case("a header that is no UTF-8", edit_bytes(lambda raw: with_header(b"\xff\xfe", b"")), (SHARD, "not valid JSON")),
    Case("a name twice in a header", edit_bytes(duplicate_key), (SHARD, "occurs twice")),
    Case("overlapping offsets", edit_header(overlap), (SHARD, "overlaps")),
    Case("negative offsets", edit_header(negative), (SHARD, "data_offsets [-2")),
    Case("offsets as text", edit_header(lambda h: first(h).update(data_offsets="0")), (SHARD, "data_offsets '0'")),
    Case("an unknown dtype", edit_header(lambda h: first(h).update(dtype="F12")), (SHARD, "dtype 'F12'")),
    Case("a dtype of another size", edit_header(lambda h: first(h).update(dtype="F64")), (SHARD, "needs")),
    Case("a dtype of the same size", edit_header(lambda h: first(h).update(dtype="F16")), (SHARD, "is F16")),
    Case("a shape turned", edit_header(swap_shapes), (SHARD, "has shape")),
    Case("a bit flipped in a name", edit_bytes(flipped_in_name), ("unknown to the index", SHARD)),
    Case("an index that misplaces tensors", shard_name(OTHER), (INDEX, f"is not in {OTHER}")),
    Case("an index without weight_map", edit_json(INDEX, lambda p: p.pop("weight_map")), (INDEX, "no weight_map")),
    Case("an index that is no JSON", lambda d: (d / INDEX).write_text("{"), (INDEX, "not valid JSON")),
    Case("a missing shard", lambda d: (d / SHARD).unlink(), (SHARD, "missing")),
    Case("a shard the index does not know", lambda d: save_file({}, d / "x.safetensors"), ("x.safetensors",)),
    Case("shards without an index", lambda d: (d / INDEX).unlink(), ("3 .safetensors files and no", INDEX)),
    Case("a missing tensor", edit_tensors(lambda t: t.pop(NORM)), (f"missing {NORM}",)),
    Case("a renamed tensor", rename(NORM, "model.nrom.weight"), (f"missing {NORM}", "surplus model.nrom.weight")),
    Case(
        "a shared expert's tensors",
        edit_tensors(lambda t: t.update({"model.layers.0.shared_mlp.w1.weight": t[NORM]})),
        ("surplus model.layers.0.shared_mlp.w1.weight (a shared expert",),
    ),
    Case(
        "a float32 tensor among bfloat16, of values that bfloat16 has not",
        edit_tensors(lambda t: t.update({NORM: t[NORM].astype(np.float32) + np.float32(2**-20)})),
        (f"tensor '{NORM}'", "is float32 among bfloat16 weights", "--dtype=float32 keeps them"),
    ),
    Case(
        "a float16 tensor among bfloat16",
        edit_tensors(lambda t: t.update({NORM: t[NORM].astype(np.float16)})),
        (f"tensor {NORM} of", "is F16, the weights are bfloat16"),
    ),
    Case(
        "a tensor of another shape",
        edit_tensors(lambda t: t.update({NORM: t[NORM][:-1].copy()})),
        (f"tensor {NORM} has shape [15], config.json gives [16]",),
    ),
)
PATHS = tuple(
    Case(f"a shard named {name!r:.40}", shard_name(name), (INDEX, "not the plain name"))
    for name in (
        "../outside.safetensors",
        "/etc/passwd",
        "a/../../b.safetensors",
        "C:\\x.safetensors",
        "",
        "x\0.safetensors",
    )
    + ("a" * 400 + ".safetensors", 7, None, ["x.safetensors"], "..", "pytorch_model.bin", "sub/x.safetensors")
) + (
    Case("a shard that links out", replace_by(lambda p, t: p.symlink_to(t)), (SHARD, "a link out of the directory")),
    Case("a shard that links to itself", replace_by(lambda p, t: p.symlink_to(p.name)), (SHARD, "missing")),
    Case("a shard that is a folder", replace_by(lambda p, t: p.mkdir()), (SHARD, "not a regular file")),
    Case("a shard that is a FIFO", replace_by(lambda p, t: os.mkfifo(p)), (SHARD, "not a regular file")),
    Case("a shard that links to a device", replace_by(lambda p, t: p.symlink_to("/dev/zero")), (SHARD, "link out")),
    Case("pickles alone", only_pickles, ("pytorch_model.bin is a pickle", "safetensors.torch.save_file")),
)
CONFIG = (
    Case("no config.json", lambda d: (d / "config.json").unlink(), ("config.json", "missing")),
    Case("config.json that is no JSON", lambda d: (d / "config.json").write_text("{]"), ("config.json", "not valid")),
    Case("an unknown model_type", edit_config(model_type="mixtral"), ("model_type='mixtral'", "minimax_text_01")),
    *(
        Case(f"{name} missing", drop_field(name), (f"{name}", "missing"))
        for name in ("rotary_dim", "rope_theta", "rms_norm_eps", "attn_type_list", "head_dim", "num_experts_per_tok")
        + ("layernorm_full_attention_alpha", "layernorm_linear_attention_beta", "layernorm_mlp_alpha", "postnorm")
        + ("shared_intermediate_size", "tie_word_embeddings", "hidden_act")
    ),
    Case("rotary_dim beyond the head", edit_config(rotary_dim=64), ("rotary_dim", "model.head_dim=8")),
    Case(
        "attn_type_list against the tensors",
        edit_config(attn_type_list=[0, 0, 0, 0, 0, 1]),
        ("layer 2: the tensors are softmax attention's", "missing", "surplus"),
    ),
    Case("attn_type_list too short", edit_config(attn_type_list=[0, 0, 1]), ("num_hidden_layers=6 contradicts",)),
    Case("both vocabularies, two alphas", edit_config(mlp_alpha_factor=9.0), ("contradicts mlp_alpha_factor=9.0",)),
    Case(
        "partial_rotary_factor against rotary_dim", edit_config(partial_rotary_factor=1.0), ("contradicts rotary_dim",)
    ),
    Case("a tied head", edit_config(tie_word_embeddings=True), ("tie_word_embeddings",)),
    Case("a shared expert", edit_config(shared_intermediate_size=[4]), ("shared_intermediate_size",)),
    Case("a pre-norm residual", edit_config(postnorm=False), ("postnorm",)),
    Case("a sliding window", edit_config(sliding_window=4096), ("sliding_window",)),
    Case("scaled RoPE", edit_config(rope_scaling={"type": "yarn"}), ("rope_scaling",)),
    Case("quantised weights", edit_config(quantization_config={"bits": 8}), ("quantization_config",)),
    Case("a width as text", edit_config(hidden_size="16"), ("hidden_size='16' is not a whole number",)),
    Case("a theta of infinity", edit_json("config.json", lambda p: p.update(rope_theta=float("inf"))), ("not valid",)),
    Case("another width than the tensors'", edit_config(hidden_size=24), ("config.json gives [24]",)),
    Case("more layers than the tensors'", edit_config(num_hidden_layers=9, attn_type_list=[0, 0, 1] * 3), ("missing",)),
    Case(
        "another dtype than the tensors'",
        edit_config(torch_dtype="float32"),
        _FLOAT32,
    ),
)
CONTENT = (
    Case(
        "a bit flipped in the data",
        edit_bytes(lambda raw: raw[:-7] + bytes([raw[-7] ^ 4]) + raw[-6:]),
        (SHARD, "SHA-256"),
    ),
    Case("two tensors of a shape swapped", swap_two, ("SHA-256",)),
    Case("a NaN", set_value(float("nan")), (NORM, "not finite", "(3,)"), ("--check-finite",)),
    Case("an infinity", set_value(float("inf")), (NORM, "not finite", "(3,)"), ("--check-finite",)),
)
CASES = STRUCTURE + PATHS + CONFIG + CONTENT


def make(directory: pathlib.Path, case: Case) -> pathlib.Path:
    """The spoiled directory; content cases have the SHA-256 of the sound tensors beside them."""
    samples.make(directory)
    if case in CONTENT and not case.flags:
        write_sha256s(directory)
    case.spoil(directory)
    return directory
