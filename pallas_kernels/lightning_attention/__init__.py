"""Lightning attention: linear attention whose state decays by one constant per head.

An implementation is a module with four or five functions. Arguments are checked by `api.py` before they arrive; `state`
is a float32 array or None for zeros, `segment_ids_BS` int32 or None, `slope_N` float32; q, k, v share one dtype. The
gradient of a state that is None is not looked at: `backward` may leave it None.

    unsupported(q, k, v, slope, state, segment_ids) -> str | None      why it cannot, or None if it can
    forward(q_BSNH, k_BSNH, v_BSNH, slope_N, state_BNHH, segment_ids_BS) -> (out_BSNH, state_BNHH)
    backward(q, k, v, slope, state, segment_ids, d_out_BSNH, d_state_BNHH) -> (dq, dk, dv, d_state_BNHH)
    forward_joined(qkv_BSN3H, slope_N, state_BNHH, segment_ids_BS)     as forward; only where it saves a pass over them
    state(k_BSNH, v_BSNH, slope_N, segment_ids_BS, reverse=)           of `lightning_state`; only where it is cheaper
    step(q_BNH, k_BNH, v_BNH, slope_N, state_BNHH, active_B) -> (out_BNH, state_BNHH)      active_B bool or None

`unsupported` is asked before a step too, with q, k, v of three axes. It may depend on shapes, dtypes and the platform
alone (tracers arrive). `backward` gets the forward's inputs and nothing saved besides, and may be another
implementation's. In `jax.shard_map` all arguments vary over the same mesh axes, and an output must carry them too
(`manual_axis_type=jax.typeof(q).manual_axis_type` on a Pallas call's output type). What segments and padding mean is
in `pallas_kernels/documents.py`.
"""

from pallas_kernels.lightning_attention.api import (
    lightning_attention,
    lightning_attention_joined,
    lightning_attention_step,
    lightning_state,
)

__all__ = ["lightning_attention", "lightning_attention_joined", "lightning_attention_step", "lightning_state"]
