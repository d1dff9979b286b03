"""The table of objectives and reward terms: values by hand, and what the entries say of themselves."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from adagrpo.objective.terms import TERMS, RewardTerm, TermInputs, TermLoss
from adagrpo.types import PositiveFloat

NAN = float("nan")


def groups(**changes: torch.Tensor) -> TermInputs:
    """One group of two items, of rewards 1 and 3, and an invalid rollout; one code each."""
    log_probs = torch.tensor([[[0.5], [0.25], [0.125]]]).log()
    arguments = TermInputs(
        log_probs,
        old_log_probs=log_probs,
        rewards=torch.tensor([[1.0, 3.0, NAN]]),
        items=torch.tensor([[4, 7, -1]]),
        codes=torch.tensor([[[0], [1], [2]]]),
        in_catalog=torch.tensor([[True, True, False]]),
        reference=log_probs,
    )
    return arguments._replace(**changes)


def test_grpo_by_hand() -> None:
    # advantages -1, 1 (less what delta takes) and -2 for the invalid one; every ratio is 1
    actual = TERMS["grpo"].loss(groups(), invalid_penalty=2.0)
    torch.testing.assert_close(actual.losses, torch.tensor([2.0 / 3]))
    assert float(actual.logged["clip_fraction"]) == 0.0
    # ratios 2, 1 and 1/2: the first falls by less than the clip asks, the third is cut where it would fall further
    old = torch.tensor([[[0.25], [0.25], [0.25]]]).log()
    actual = TERMS["grpo"].loss(groups(old_log_probs=old), epsilon=0.2, epsilon_high=0.3)
    assert float(actual.logged["clip_fraction"]) == pytest.approx(1 / 3)
    torch.testing.assert_close(actual.losses, torch.tensor([(2.0 - 1.0 + 0.8) / 3]), rtol=1e-3, atol=0)


def test_beta_is_the_weight_of_the_kl_and_scale_rewards_divides() -> None:
    reference = torch.tensor([[[0.25], [0.25], [0.125]]]).log()
    plain, pulled = (TERMS["grpo"].loss(groups(reference=reference), beta=beta).losses for beta in (0.0, 3.0))
    # k3 of the first code: 1/2 - ln 1/2 - 1
    torch.testing.assert_close(pulled - plain, torch.tensor([0.5 + math.log(2) - 1]))
    centred = TERMS["grpo"].loss(groups(rewards=torch.tensor([[1.0, 5.0, NAN]])), scale_rewards=False)
    torch.testing.assert_close(centred.losses, torch.tensor([(2.0 - 2.0 + 1.0) / 3]))


def test_distill_by_hand() -> None:
    # p = (4, 2, 1) / 7; q = softmax over the items of log p + w r, here 4 e^{w} to 2 e^{3 w}
    for weight in (0.0, 0.5):
        q = 4 * math.exp(weight) / (4 * math.exp(weight) + 2 * math.exp(3 * weight))
        expected = q * math.log(q * 7 / 4) + (1 - q) * math.log((1 - q) * 7 / 2)
        actual = TERMS["distill"].loss(groups(), reward_weight=weight)
        torch.testing.assert_close(actual.losses, torch.tensor([expected]))
        assert not actual.logged


def test_what_distill_excludes_on_purpose_is_on_neither_side() -> None:
    # the invalid rollout names an item that was excluded: p is (4, 2) / 6 = q, so nothing is left to teach
    named = torch.tensor([[True, True, True]])
    actual = TERMS["distill"].loss(groups(in_catalog=named), reward_weight=0.0)
    torch.testing.assert_close(actual.losses, torch.zeros(1))


def test_the_margin_stands_beside_distillation_at_its_weight() -> None:
    plain, margin = (TERMS["distill"].loss(groups(), validity_weight=weight).losses for weight in (0.0, 6.0))
    # the invalid rollout lies ln 2 below the least item, and a nat is asked for
    torch.testing.assert_close(margin - plain, torch.tensor([6.0 * (1 - math.log(2)) / 3]))


def test_best_of_n_by_hand() -> None:
    torch.testing.assert_close(TERMS["best_of_n"].loss(groups()).losses, torch.tensor([math.log(4)]))


def test_a_term_says_what_it_needs() -> None:
    defaults = {key: default for key, (_, default) in TERMS["grpo"].options.items()}
    assert not TERMS["grpo"].needs_reference(defaults)
    assert TERMS["grpo"].needs_reference(defaults | {"beta": 0.1})
    with pytest.raises(ValueError, match=r"^reference: "):
        TERMS["distill"].loss(groups()._replace(reference=None))
    with pytest.raises(ValueError, match=r"^reference: "):
        TERMS["grpo"].loss(groups()._replace(reference=None), beta=0.1)


def test_the_example_of_the_documents_is_a_term() -> None:
    page = (Path(__file__).parents[2] / "docs" / "contributing.md").read_text(encoding="utf-8")
    code = next(part for part in page.split("```python\n") if part.startswith("def weighted_nll")).partition("```")[0]
    names = {"TermInputs": TermInputs, "TermLoss": TermLoss, "PositiveFloat": PositiveFloat, "torch": torch}
    exec(code, names)  # the project's own page
    term = RewardTerm("weighted_nll", names["weighted_nll"])  # type: ignore[arg-type]
    assert term.options == {"sharpness": (PositiveFloat, 1.0)}
    log_probs = torch.tensor([[[-1.0, -1.0], [-2.0, -2.0], [-9.0, -9.0]]])
    rewards, items = torch.tensor([[math.log(3.0), 0.0, math.nan]]), torch.tensor([[4, 7, -1]])
    losses = term.loss(groups(log_probs=log_probs, rewards=rewards, items=items)).losses
    assert losses.tolist() == pytest.approx([0.75 * 2 + 0.25 * 4])  # weights 3 : 1, the invalid one left out
