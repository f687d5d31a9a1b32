"""Lightning attention as the paper writes it: NumPy, float64, one token after the other.

    S_t = exp(-slope) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t

and its gradient by the reverse recurrence, G the gradient of the state:

    G_t = q_t do_t^T + exp(-slope) G_{t+1}       dq_t = S_t do_t     dk_t = G_t v_t     dv_t = G_t^T k_t
"""

import numpy as np


def forward(q_BSNH, k_BSNH, v_BSNH, slope_N, state_BNHH=None, segment_ids_BS=None):
    """out (B, S, N, H) and state (B, N, H, H), both float64; arguments as `api.lightning_attention`."""
    q, k, v = (np.asarray(x, np.float64) for x in (q_BSNH, k_BSNH, v_BSNH))
    keep_BSN, valid_BS = _keep(q.shape, slope_N, segment_ids_BS)
    state = _initial(q.shape, state_BNHH)
    out = np.zeros_like(q)
    for b, t in np.argwhere(valid_BS):
        state[b] = keep_BSN[b, t, :, None, None] * state[b] + k[b, t, :, :, None] * v[b, t, :, None, :]
        out[b, t] = np.einsum("nkv,nk->nv", state[b], q[b, t])
    return out, state


def backward(q_BSNH, k_BSNH, v_BSNH, slope_N, state_BNHH, segment_ids_BS, d_out_BSNH, d_state_BNHH):
    """Gradients of q, k, v and of the incoming state, float64, for given gradients of both outputs."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q_BSNH, k_BSNH, v_BSNH, d_out_BSNH))
    keep_BSN, valid_BS = _keep(q.shape, slope_N, segment_ids_BS)
    state, grad = _initial(q.shape, state_BNHH), _initial(q.shape, d_state_BNHH)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(q), np.zeros_like(q)
    for b, t in np.argwhere(valid_BS):
        state[b] = keep_BSN[b, t, :, None, None] * state[b] + k[b, t, :, :, None] * v[b, t, :, None, :]
        dq[b, t] = np.einsum("nkv,nv->nk", state[b], d_out[b, t])
    for b, t in np.argwhere(valid_BS)[::-1]:
        grad[b] += q[b, t, :, :, None] * d_out[b, t, :, None, :]
        dk[b, t] = np.einsum("nkv,nv->nk", grad[b], v[b, t])
        dv[b, t] = np.einsum("nkv,nk->nv", grad[b], k[b, t])
        grad[b] *= keep_BSN[b, t, :, None, None]
    return dq, dk, dv, grad


def step(q_BNH, k_BNH, v_BNH, slope_N, state_BNHH, active_B=None):
    """One token of every row: out (B, N, H), state (B, N, H, H), float64."""
    segment_ids = None if active_B is None else np.where(np.asarray(active_B), 0, -1)[:, None]
    one = [np.asarray(x)[:, None] for x in (q_BNH, k_BNH, v_BNH)]
    out, state = forward(*one, slope_N, state_BNHH, segment_ids)
    return out[:, 0], state


def _initial(shape, state_BNHH):
    B, _, N, H = shape
    return np.zeros((B, N, H, H)) if state_BNHH is None else np.array(state_BNHH, np.float64)


def _keep(shape, slope_N, segment_ids_BS):
    """What a token leaves of the state before it, (B, S, N): the decay, or 0 at the start of a document."""
    B, S, N, _ = shape
    decay_N = np.exp(-np.asarray(slope_N, np.float64))
    keep_BSN, valid_BS = np.broadcast_to(decay_N, (B, S, N)).copy(), np.ones((B, S), bool)
    for b in range(B if segment_ids_BS is not None else 0):
        document = None
        for t, segment in enumerate(np.asarray(segment_ids_BS)[b]):
            if segment < 0:
                valid_BS[b, t] = False
                continue
            if document is not None and segment != document:
                keep_BSN[b, t] = 0.0
            document = segment
    return keep_BSN, valid_BS
