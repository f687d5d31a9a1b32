"""The NumPy oracle of lightning attention against its own definition, so that nothing rests on one program."""

import numpy as np

from pallas_kernels.lightning_attention import reference

B, S, N, H = 2, 13, 2, 4
SLOPE = np.array([0.3, 0.02])
SEGMENTS = np.array([[4, 4, -1, 4, 4, 1, 1, 1, -2, 1, 4, 4, -1], [-1, -1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]])


def _arrays():
    rng = np.random.default_rng(0)
    q, k, v, d_out = rng.normal(size=(4, B, S, N, H))
    state, d_state = rng.normal(size=(2, B, N, H, H))
    return q, k, v, state, d_out, d_state


def _double_sum(q, k, v, state):
    """out_i = sum_j exp(-slope (i - j)) (q_i . k_j) v_j over the tokens of one document, padding taken out."""
    out = np.zeros_like(q)
    for b in range(B):
        valid = [t for t in range(S) if SEGMENTS[b, t] >= 0]
        ids = SEGMENTS[b, valid]
        document = np.concatenate([[0], np.cumsum(ids[1:] != ids[:-1])])
        for i, t in enumerate(valid):
            if document[i] == 0:
                out[b, t] += np.exp(-SLOPE * (i + 1))[:, None] * np.einsum("nk,nkv->nv", q[b, t], state[b])
            for j in range(i + 1):
                if document[j] == document[i]:
                    u = valid[j]
                    score = np.exp(-SLOPE * (i - j)) * np.sum(q[b, t] * k[b, u], axis=-1)
                    out[b, t] += score[:, None] * v[b, u]
    return out


def test_reference_recurrence_equals_the_double_sum():
    q, k, v, state, _, _ = _arrays()
    out, _ = reference.forward(q, k, v, SLOPE, state, SEGMENTS)
    np.testing.assert_allclose(out, _double_sum(q, k, v, state), rtol=0, atol=1e-13)


def test_reference_gradients_equal_central_differences():
    q, k, v, state, d_out, d_state = _arrays()
    grads = reference.backward(q, k, v, SLOPE, state, SEGMENTS, d_out, d_state)
    inputs, step, rng = [q, k, v, state], 1e-3, np.random.default_rng(1)

    def loss(arrays):
        out, last = reference.forward(*arrays[:3], SLOPE, arrays[3], SEGMENTS)
        return np.sum(out * d_out) + np.sum(last * d_state)

    for i, grad in enumerate(grads):
        direction = rng.normal(size=grad.shape)
        moved = [[x + sign * step * direction if i == j else x for j, x in enumerate(inputs)] for sign in (1, -1)]
        # The loss is at most quadratic in each argument: the central difference has no truncation error.
        np.testing.assert_allclose((loss(moved[0]) - loss(moved[1])) / (2 * step), np.sum(grad * direction), rtol=1e-9)


def test_reference_state_is_that_of_the_last_token_that_is_not_padding():
    q, k, v, state, _, _ = _arrays()
    _, whole = reference.forward(q, k, v, SLOPE, state, SEGMENTS)
    _, cut = reference.forward(q[:, :12], k[:, :12], v[:, :12], SLOPE, state, SEGMENTS[:, :12])
    assert np.array_equal(whole[0], cut[0])
    assert not np.array_equal(whole[1], cut[1])
