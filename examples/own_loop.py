"""AdaGRPO in a training loop of one's own: `adagrpo.objective` from tensors to a loss, on a ring of 60 items."""

import torch
from torch import nn

import adagrpo.objective as ada

V, K, L = 60, 8, 2  # items; codes a level; levels of a Semantic ID: item i is (i // 8, i % 8), and 60 to 63 are none
B, G, M = 64, 16, 5  # samples a step; rollouts a sample; items of other samples
torch.manual_seed(0)
first, second = nn.Embedding(V, K), nn.Embedding(V * K, K)  # the policy: logits of each code after the last item
optimizer = torch.optim.Adam([*first.parameters(), *second.parameters()], lr=0.03)


def log_probs_of(last: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:  # (B,), (B, N, L)
    """Return the log-probabilities of codes, (B, N, L)."""
    after = second(last[:, None] * K + codes[..., 0]).log_softmax(-1)  # (B, N, K)
    level = first(last)[:, None].expand_as(after).log_softmax(-1)  # (B, N, K)
    return torch.stack([level, after], 2).gather(3, codes[..., None]).squeeze(3)


def reward_of(last: torch.Tensor, items: torch.Tensor) -> torch.Tensor:  # (B,), (B, N)
    """Return the rewards of items, (B, N), NaN where there is none."""
    gap = (items - last[:, None] - 1) % V  # 0 for the next item of the ring
    return (-torch.minimum(gap, V - gap).float()).masked_fill(items < 0, torch.nan)


for step in range(1, 201):
    last = torch.randint(V, (B,))  # (B,)
    logged = (last + 1 + (torch.rand(B) < 0.3) * torch.randint(5, (B,))) % V  # (B,)
    with torch.no_grad():
        one = first(last).softmax(-1).multinomial(G, replacement=True)  # (B, G)
        two = second(last[:, None] * K + one).softmax(-1).reshape(-1, K).multinomial(1).reshape(B, G)  # (B, G)
    codes = torch.stack([one, two], 2)  # (B, G, L)
    items = (one * K + two).masked_fill(one * K + two >= V, -1)  # (B, G), -1 for no item
    log_probs = log_probs_of(last, codes)  # (B, G, L)
    own = log_probs_of(last, torch.stack([logged // K, logged % K], 1)[:, None])  # (B, 1, L), of the logged item
    others = items.roll(1, 0)[:, :M]  # (B, M)
    others = others.masked_fill(others == logged[:, None], -1)  # (B, M)
    rewards = reward_of(last, items)  # (B, G)

    above_policy = ada.share_above(own.sum(2), logged[:, None], log_probs.sum(2), items).detach()[:, 0]  # (B,)
    above_reward = ada.share_above(reward_of(last, logged[:, None]), logged[:, None], rewards, items)[:, 0]  # (B,)
    negatives_above = ada.share_above(reward_of(last, others), others, rewards, items)  # (B, M)
    std = rewards[items >= 0].std()  # (); over steps, a running mean of it
    degenerate = ada.degenerate_groups(rewards, items, running_std=std)  # (B,)
    gate = ada.adagrpo_gate(above_policy, above_reward, negatives_above, degenerate, tau=0.3, rho=0.2)
    advantages = ada.group_advantages(rewards, items >= 0)  # (B, G)
    surrogate = ada.clipped_surrogate(log_probs, log_probs.detach(), advantages)  # loss (B, G, L)
    reward_term = ada.gated_sum(ada.group_loss(surrogate.loss), gate.admitted, total=B)  # ()
    loss = ada.nll(own[:, 0]).mean() + 1.0 * reward_term  # (), with λ = 1

    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 40 == 0:
        admission, reward = gate.admitted.float().mean(), rewards.nanmean()
        print(f"step {step:3}  admission {admission:.2f}  loss {loss:.3f}  reward {reward:.2f}")
