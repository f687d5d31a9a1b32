"""Laws of the reference itself: what it says about documents, caches, capacity and derivatives."""

import ast
import dataclasses
import math
import pathlib

import numpy as np
import pytest

from tests.reference import losses
from tests.reference.complex_step import directional_derivative
from tests.reference.config import ReferenceConfig
from tests.reference.documents import as_past, document_numbers, positions_in_documents
from tests.reference.experts import route, within_capacity
from tests.reference.lightning import head_slopes, recurrence
from tests.reference.model import forward
from tests.reference.random_weights import random_weights

CONFIG = ReferenceConfig(
    vocab_size=13,
    hidden_size=12,
    intermediate_size=6,
    attn_type_list=(0, 1, 0, 1),
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=4,
    rotary_dim=2,
    num_local_experts=5,
    num_experts_per_tok=3,
    layernorm_linear_attention_alpha=1.5,
    layernorm_linear_attention_beta=0.7,
    layernorm_full_attention_alpha=1.25,
    layernorm_full_attention_beta=0.8,
    layernorm_mlp_alpha=1.75,
    layernorm_mlp_beta=0.9,
)
WEIGHTS = {name: weight.astype(np.float64) for name, weight in random_weights(CONFIG, 7).items()}
TOKENS = np.random.RandomState(8).randint(CONFIG.vocab_size, size=(2, 12))
SEGMENTS = np.array([[0, 0, 0, 3, 3, -1, 3, 1, 1, 1, -1, -1], [-1, 5, 5, 5, 5, 5, 2, 2, 0, 0, 0, 0]])
ROUNDING = 1e-12


def training_loss(config, weights):
    result = forward(config, weights, TOKENS, segments_BS=SEGMENTS)
    loss = losses.cross_entropy(result.logits_BSV, *losses.next_tokens(TOKENS, result.documents_BS))
    loss += sum(losses.paper_balance(routing, result.real_R) for routing in result.routings)
    loss += sum(losses.router_z(routing, result.real_R) for routing in result.routings)
    return loss + losses.transformers_balance(result.routings, result.real_R)


def test_reference_imports_numpy_and_itself_alone():
    for path in pathlib.Path(__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert not name.startswith(("mm01_jax", "pallas_kernels", "jax", "flax", "torch")), f"{path}: {name}"


@pytest.mark.parametrize("capacity_factor", [None, 0.75])
@pytest.mark.parametrize("name", sorted(WEIGHTS)[::5])
def test_complex_step_equals_a_central_difference(name, capacity_factor):
    config = dataclasses.replace(CONFIG, capacity_factor=capacity_factor)
    direction = {name: np.random.RandomState(1).standard_normal(WEIGHTS[name].shape)}
    exact = directional_derivative(lambda w: training_loss(config, w), WEIGHTS, direction)
    step = 1e-6
    up, down = ({**WEIGHTS, name: WEIGHTS[name] + sign * step * direction[name]} for sign in (1, -1))
    difference = (training_loss(config, up) - training_loss(config, down)) / (2 * step)
    # Truncation step^2 |f'''| and cancellation |f| 1e-16 / step: both near 1e-9 here.
    np.testing.assert_allclose(exact, difference, rtol=1e-7, atol=1e-8)


def test_packed_documents_equal_each_alone():
    packed = forward(CONFIG, WEIGHTS, TOKENS, segments_BS=SEGMENTS)
    for b in range(2):
        for number in range(packed.documents_BS[b].max() + 1):
            at = np.flatnonzero(packed.documents_BS[b] == number)
            if at.size == 0:
                continue
            alone = forward(CONFIG, WEIGHTS, TOKENS[b : b + 1, at])
            np.testing.assert_allclose(packed.logits_BSV[b, at], alone.logits_BSV[0], rtol=0, atol=ROUNDING)
    for got, want in zip(packed.states, alone.states, strict=True):
        np.testing.assert_allclose(got[1], want[0], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("cuts", [(5,), (1, 3, 6, 11), tuple(range(1, 12))])
def test_calls_in_pieces_equal_one_call_at_any_cut(cuts):
    whole = forward(CONFIG, WEIGHTS, TOKENS, segments_BS=SEGMENTS)
    # One id per row for a whole call: a piece that begins a document begins it with an empty past.
    pieces, result = [], None
    for piece in np.split(np.arange(12), cuts):
        cache = result.cache if result is not None else None
        if cache is not None:
            cache = forget_finished_rows(cache, whole.documents_BS, piece[0])
        result = forward(CONFIG, WEIGHTS, TOKENS[:, piece], segments_BS=SEGMENTS[:, piece], cache=cache)
        pieces.append(result.logits_BSV)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole.logits_BSV, rtol=0, atol=ROUNDING)
    for got, want in zip(result.states, whole.states, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=ROUNDING)


def forget_finished_rows(cache, documents_BS, start: int):
    """The cache, emptied in rows whose next real token begins a document (a call always goes on with what it gets)."""
    fresh_B = np.zeros(len(documents_BS), bool)
    for b, row in enumerate(documents_BS):
        before, after = row[:start][row[:start] >= 0], row[start:][row[start:] >= 0]
        fresh_B[b] = before.size > 0 and after.size > 0 and before[-1] != after[0]
    layers = tuple(
        past if isinstance(past, tuple) else np.where(fresh_B[:, None, None, None], 0.0, past) for past in cache.layers
    )
    documents_BT = np.where(fresh_B[:, None], -1, as_past(cache.documents_BT))
    return dataclasses.replace(
        cache, layers=layers, documents_BT=documents_BT, next_position_B=np.where(fresh_B, 0, cache.next_position_B)
    )


def test_documents_are_numbered_by_change_and_padding_changes_nothing():
    documents_BS = document_numbers(SEGMENTS)
    np.testing.assert_array_equal(documents_BS[0], [0, 0, 0, 1, 1, -1, 1, 2, 2, 2, -1, -1])
    np.testing.assert_array_equal(documents_BS[1], [-1, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
    positions_BS, next_B = positions_in_documents(documents_BS, [4, 0])
    np.testing.assert_array_equal(positions_BS[0], [4, 5, 6, 0, 1, 0, 2, 0, 1, 2, 0, 0])
    np.testing.assert_array_equal(next_B, [3, 4])


def test_recurrence_equals_its_sum_over_the_past():
    r = np.random.RandomState(2)
    q, k, v = (r.standard_normal((1, 9, 3, 4)) for _ in range(3))
    slope_N = np.array([0.1, 0.5, 2.0])
    out, state = recurrence(q, k, v, slope_N, np.zeros((1, 9), int), np.zeros((1, 3, 4, 4)))
    for t in range(9):
        decay_JN = np.exp(-slope_N * (t - np.arange(t + 1))[:, None])
        score_JN = np.einsum("nh,jnh->jn", q[0, t], k[0, : t + 1]) * decay_JN
        np.testing.assert_allclose(out[0, t], np.einsum("jn,jnh->nh", score_JN, v[0, : t + 1]), atol=ROUNDING)
    np.testing.assert_allclose(state[0], np.einsum("jn,jnk,jnv->nkv", decay_JN, k[0], v[0]), atol=ROUNDING)


def test_head_slopes_of_any_count_follow_alibi():
    np.testing.assert_allclose(head_slopes(64)[[0, 7, 63]], [2**-0.125, 0.5, 2**-8.0])
    np.testing.assert_allclose(head_slopes(6), [2**-2.0, 2**-4.0, 2**-6.0, 2**-8.0, 2**-1.0, 2**-3.0])
    np.testing.assert_allclose(head_slopes(1), [2**-8.0])


def test_capacity_serves_tokens_in_order_then_choices_and_padding_takes_no_place():
    chosen_RA = np.array([[0, 1], [0, 1], [1, 0], [1, 2], [0, 2]])
    kept_RA = within_capacity(chosen_RA, np.array([True, False, True, True, True]), num_experts=3, limit=2)
    np.testing.assert_array_equal(kept_RA, [[1, 1], [0, 0], [1, 1], [0, 1], [0, 1]])


def test_capacity_of_every_assignment_equals_dropless():
    wide = dataclasses.replace(CONFIG, capacity_factor=float(CONFIG.num_local_experts))
    want = forward(CONFIG, WEIGHTS, TOKENS, segments_BS=SEGMENTS).logits_BSV
    np.testing.assert_array_equal(forward(wide, WEIGHTS, TOKENS, segments_BS=SEGMENTS).logits_BSV, want)


def test_balanced_router_scores_k_in_transformers_form_and_k_over_e_squared_in_the_papers():
    config = dataclasses.replace(CONFIG, num_local_experts=4, num_experts_per_tok=2)
    real_R = np.ones(4, bool)
    routing = route(config, 1e-9 * np.eye(4), np.eye(4) + np.roll(np.eye(4), 1, axis=0) / 2, real_R)
    np.testing.assert_array_equal(np.bincount(routing.chosen_RA.ravel()), [2, 2, 2, 2])
    np.testing.assert_allclose(losses.transformers_balance([routing, routing], real_R), 2.0, rtol=1e-8)
    np.testing.assert_allclose(losses.paper_balance(routing, real_R), 2.0 / 4**2, rtol=1e-8)
    np.testing.assert_allclose(losses.router_z(routing, real_R), math.log(4) ** 2, rtol=1e-8)
