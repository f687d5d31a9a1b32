"""The first stage of the paper: its config turns at the paper's tokens, and its last batch divides like its first."""

import dataclasses

import pytest

from configs import text_01_paper
from mm01_jax.config import rules

CONFIG = text_01_paper.get_config()


def _tokens(steps: int) -> int:
    """Tokens of so many steps, counted step by step of the ramp."""
    train, total, at = CONFIG.train, 0, 0
    ramp = [(0, train.batch_size), *train.batch_ramp]
    for (_, size), (until, _) in zip(ramp, [*ramp[1:], (steps, 0)], strict=True):
        until = min(until, steps)
        total, at = total + max(0, until - at) * size * train.sequence_length, max(at, until)
    return total


@pytest.mark.parametrize(
    ("step", "tokens"),
    [
        *zip([step for step, _ in CONFIG.train.batch_ramp], (69e9, 790e9, 4.7e12), strict=True),
        (CONFIG.optimizer.schedule.step_down_at, 7.2e12),
        (CONFIG.optimizer.schedule.decay_start, 10.4e12),
        (CONFIG.train.steps, 11.4e12),
    ],
)
def test_the_paper_s_run_turns_at_the_paper_s_tokens(step, tokens):
    last_batch = CONFIG.train.batch_ramp[-1][1] * CONFIG.train.sequence_length
    assert abs(_tokens(step) - tokens) <= last_batch


def test_every_batch_of_the_paper_s_run_is_a_valid_config_of_its_own():
    sizes = [CONFIG.train.batch_size, *(size for _, size in CONFIG.train.batch_ramp)]
    assert [size * CONFIG.train.sequence_length for size in sizes] == [2**24, 2**25, 2**26, 2**27]
    for size in sizes:
        alone = dataclasses.replace(CONFIG.train, batch_size=size, batch_ramp=())
        rules.check(dataclasses.replace(CONFIG, train=alone))
