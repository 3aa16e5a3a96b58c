"""PPO's equations against numbers worked out by hand."""

from math import log
from typing import Any

import pytest


def tensor(values: float | list[Any]) -> Any:
    import torch

    return torch.tensor(values, dtype=torch.float64)


def test_advantages_of_two_answers() -> None:
    """gamma 0.9, lambda 0.5: what is carried back of the next advantage is 0.45 of it."""
    from finetune_trainer.objective.ppo_loss import compute_gae

    advantages, returns = compute_gae(
        rewards=tensor([[0.0, 0.0, 1.0], [-0.1, 2.0, 5.0]]),
        values=tensor([[0.5, 0.4, 0.2], [1.0, -1.0, 7.0]]),
        mask=tensor([[1, 1, 1], [1, 1, 0]]),
        gamma=0.9,
        gae_lambda=0.5,
    )
    # First answer: delta_2 = 1 - 0.2 = 0.8, delta_1 = 0.9 * 0.2 - 0.4 = -0.22, delta_0 = 0.9 * 0.4 - 0.5 = -0.14;
    # A_2 = 0.8, A_1 = -0.22 + 0.45 * 0.8 = 0.14, A_0 = -0.14 + 0.45 * 0.14 = -0.077.
    # Second one, of two tokens: delta_1 = 2 + 1 = 3, delta_0 = -0.1 - 0.9 - 1 = -2; A_1 = 3, A_0 = -2 + 1.35 = -0.65.
    assert advantages.tolist() == [pytest.approx([-0.077, 0.14, 0.8]), pytest.approx([-0.65, 3.0, 0.0])]
    assert returns.tolist() == [pytest.approx([0.423, 0.54, 1.0]), pytest.approx([0.35, 2.0, 0.0])]


def test_undiscounted_advantages_are_what_is_still_to_come() -> None:
    """gamma = lambda = 1: the sum of the rewards from here on, less the value."""
    from finetune_trainer.objective.ppo_loss import compute_gae

    advantages, returns = compute_gae(
        tensor([[1.0, 2.0, 4.0]]), tensor([[0.5, 0.25, 8.0]]), tensor([[1, 1, 1]]), 1.0, 1.0
    )
    assert advantages.tolist() == [[7 - 0.5, 6 - 0.25, 4 - 8.0]]
    assert returns.tolist() == [[7.0, 6.0, 4.0]]


# Probability ratio, advantage -> loss at clip range 0.2, and whether the clipping has taken the gradient away.
SURROGATE = [
    (1.5, 2.0, -2.4, True),  # min(1.5 * 2, 1.2 * 2)
    (0.5, 2.0, -1.0, False),  # min(0.5 * 2, 0.8 * 2)
    (1.5, -1.0, 1.5, False),  # min(-1.5, -1.2)
    (0.5, -1.0, 0.8, True),  # min(-0.5, -0.8)
    (1.1, 1.0, -1.1, False),
    (1.5, 0.0, 0.0, False),
]


def test_clipped_surrogate() -> None:
    from finetune_trainer.objective.ppo_loss import is_clipped, policy_loss

    old = tensor([[log(0.25)] * len(SURROGATE)])
    new = tensor([[log(0.25 * ratio) for ratio, *_ in SURROGATE]]).requires_grad_()
    advantages = tensor([[advantage for _, advantage, *_ in SURROGATE]])
    losses = policy_loss(new, old, advantages, 0.2)
    assert losses[0].tolist() == pytest.approx([loss for _, _, loss, _ in SURROGATE])
    assert is_clipped(new, old, advantages, 0.2)[0].tolist() == [float(clipped) for *_, clipped in SURROGATE]
    losses.sum().backward()
    # d(-ratio A) / d log pi = -ratio A where it isn't clipped.
    assert new.grad[0].tolist() == pytest.approx([0.0 if c else -ratio * a for ratio, a, _, c in SURROGATE])


def test_clipped_value_loss() -> None:
    from finetune_trainer.objective.ppo_loss import value_loss

    # 0.9 is clipped to 0.7: towards a return of 1 that is the worse, 0.3^2 / 2; away from one of 0.6 it isn't, 0.3^2 / 2
    # again. 0.55 is within the range: 0.45^2 / 2. 0.1 is clipped to 0.3: 0.7^2 / 2 against 0.9^2 / 2.
    losses = value_loss(tensor([[0.9, 0.9, 0.55, 0.1]]), tensor([[0.5] * 4]), tensor([[1.0, 0.6, 1.0, 1.0]]), 0.2)
    assert losses[0].tolist() == pytest.approx([0.045, 0.045, 0.10125, 0.405])


def test_divergence_and_the_rewards_of_tokens() -> None:
    from finetune_trainer.objective.ppo_loss import estimate_kl, place_rewards

    kl = estimate_kl(tensor([[log(0.5), log(0.1)], [log(0.3), 0.0]]), tensor([[log(0.25), log(0.4)], [log(0.3), 0.0]]))
    assert kl.tolist() == [pytest.approx([log(2), -log(4)]), [0.0, 0.0]]
    # Over pi = (0.5, 0.25, 0.25) and pi_ref = (0.25, 0.25, 0.5) the expectation is 0.5 log 2 - 0.25 log 2.
    pi, reference = (0.5, 0.25, 0.25), (0.25, 0.25, 0.5)
    estimates = estimate_kl(tensor([log(p) for p in pi]), tensor([log(p) for p in reference]))
    assert sum(p * estimate for p, estimate in zip(pi, estimates.tolist(), strict=True)) == pytest.approx(log(2) / 4)

    # The second answer has one token.
    rewards = place_rewards(tensor([3.0, -1.0]), tensor([[0.5, -0.25], [0.5, 9.0]]), tensor([[1, 1], [1, 0]]), 0.1)
    assert rewards.tolist() == [pytest.approx([-0.05, 3.025]), pytest.approx([-1.05, 0.0])]


def test_masked_mean_and_whitening() -> None:
    from finetune_trainer.objective.ppo_loss import masked_mean, masked_whiten

    values, mask = tensor([[1.0, 3.0], [8.0, 100.0]]), tensor([[1, 1], [1, 0]])
    assert masked_mean(values, mask).item() == 4.0
    # Parts of a batch of 3 tokens add up to its mean.
    parts = [masked_mean(values[row : row + 1], mask[row : row + 1], tensor(3.0)).item() for row in range(2)]
    assert sum(parts) == pytest.approx(4.0)
    # Deviations -3, -1, 4: variance 26 / 3.
    scale = (26 / 3) ** -0.5
    white = [pytest.approx([-3 * scale, -scale]), pytest.approx([4 * scale, 0.0])]
    assert masked_whiten(values, mask).tolist() == white
    # The second part, told the sums over both.
    sums = iter([tensor(3.0), tensor(12.0), tensor(26.0)])
    assert masked_whiten(values[1:], mask[1:], lambda part: next(sums)).tolist() == white[1:]
