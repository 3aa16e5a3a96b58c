"""The equations of PPO for language models, on tensors alone.

Everything about the tokens of answers has the shape (answers, tokens): the answers begin in column 0, and ``mask`` is 1
on each answer's tokens, 0 behind its end.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor, count: Tensor | None = None) -> Tensor:
    """Mean over the masked tokens, a scalar. ``count``: of how many tokens, where ``values`` is a part of a batch: the
    parts' means then add up to the batch's."""
    return (values * mask).sum() / (mask.sum() if count is None else count)


def masked_whiten(values: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor] = lambda part: part) -> Tensor:
    """``values`` shifted and scaled to mean 0 and variance 1 over the masked tokens, (answers, tokens).

    ``total``: the sum of a scalar over all parts of the batch. As in the code of arXiv:1909.08593.
    """
    count = total(mask.sum())
    mean = total((values * mask).sum()) / count
    variance = total(((values - mean) ** 2 * mask).sum()) / count
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask


def estimate_kl(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """log pi(a_t|s_t) - log pi_ref(a_t|s_t) of sampled tokens, (answers, tokens): in expectation the divergence of the
    policy that they were sampled from, KL(pi || pi_ref)."""
    return log_probs - reference_log_probs


def place_rewards(scores: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Rewards of the tokens, (answers, tokens): -beta kl at each, and the answer's score at its last one.

    ``scores``: (answers,). arXiv:1909.08593 eq. 2, arXiv:2203.02155 eq. 2, spread over the tokens.
    """
    rewards = -beta * kl * mask
    rows = torch.arange(len(scores), device=scores.device)
    rewards[rows, mask.sum(dim=1).long() - 1] += scores
    return rewards


def compute_gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, (answers, tokens) each.

    delta_t = r_t + gamma V(s_t+1) - V(s_t), and A_t = delta_t + gamma lambda A_t+1: arXiv:1506.02438 eq. 16, in the
    finite form of arXiv:1707.06347 eq. 11 and 12. Behind an answer's end V is 0. The returns, A_t + V(s_t), are what the
    value head learns.
    """
    advantage = next_value = torch.zeros_like(values[:, 0])
    columns = []
    for column in reversed(range(values.shape[1])):
        delta = rewards[:, column] + gamma * next_value - values[:, column]
        advantage = (delta + gamma * gae_lambda * advantage) * mask[:, column]
        next_value = values[:, column] * mask[:, column]
        columns.append(advantage)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, (advantages + values) * mask


def policy_loss(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """The clipped surrogate of each token, negated so that less is better, (answers, tokens).

    -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A): arXiv:1707.06347 eq. 7.
    """
    ratio = torch.exp(log_probs - old_log_probs)
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)


def is_clipped(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """1 for tokens whose gradient the clipping in ``policy_loss`` takes away, else 0, (answers, tokens)."""
    ratio = torch.exp(log_probs - old_log_probs)
    return (torch.where(advantages > 0, ratio > 1 + clip_range, ratio < 1 - clip_range) & (advantages != 0)).float()


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """Half the squared error of each value, or that of the value clipped to its old one if it is worse, (answers,
    tokens). L^VF of arXiv:1707.06347 eq. 9, clipped as in the code of arXiv:1909.08593."""
    clipped = torch.clamp(values, old_values - clip_range, old_values + clip_range)
    return 0.5 * torch.max((values - returns) ** 2, (clipped - returns) ** 2)
