"""Runs transformers' own MiniMax class; started by test_convert_native.py under an interpreter that has torch.

    python convert_peer.py logits DIR IDS.npy OUT.npz ROTARY_DIM     logits and lightning states in float32
    python convert_peer.py save DIR OUT DTYPE                        from_pretrained(DIR, dtype), save_pretrained(OUT)

ROTARY_DIM limits RoPE to the leading dims of each head, as the released code does; 0 leaves transformers as it is.
"""

import sys

import numpy as np
import torch
import transformers
from transformers.models.minimax import modeling_minimax


def limit_rope(rotary_dim):
    """Frequencies and rotation over the first `rotary_dim` dims, in place of whole heads."""
    rotate = modeling_minimax.apply_rotary_pos_emb

    def limited(q, k, cos, sin, *rest, **named):
        theta = limited.theta
        positions = torch.arange(q.shape[2], dtype=torch.float32)
        angle = positions[:, None] * theta ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)
        angle = torch.cat((angle, angle), dim=-1)[None]
        head, rest_q, rest_k = q.shape[-1], q[..., rotary_dim:], k[..., rotary_dim:]
        assert head > rotary_dim
        q, k = rotate(q[..., :rotary_dim], k[..., :rotary_dim], angle.cos(), angle.sin())
        return torch.cat((q, rest_q), dim=-1), torch.cat((k, rest_k), dim=-1)

    modeling_minimax.apply_rotary_pos_emb = limited
    return limited


def load(directory, dtype):
    """The model, loaded without a missing or surplus tensor."""
    model, info = transformers.MiniMaxForCausalLM.from_pretrained(
        directory, torch_dtype=dtype, output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()


def logits(directory, ids, out, rotary_dim):
    rope = limit_rope(int(rotary_dim)) if int(rotary_dim) else None
    model = load(directory, torch.float32)
    if rope:
        parameters = getattr(model.config, "rope_parameters", None) or {}
        rope.theta = parameters.get("rope_theta") or model.config.rope_theta
    ids = np.load(ids)
    with torch.no_grad():
        result = model(torch.from_numpy(ids), use_cache=True)
    np.savez(out, ids=ids, logits=result.logits.numpy())


def save(directory, out, dtype):
    load(directory, getattr(torch, dtype)).save_pretrained(out)


if __name__ == "__main__":
    {"logits": logits, "save": save}[sys.argv[1]](*sys.argv[2:])
    print(transformers.__version__)
