"""Processes that fit together: what one alone does, and a reward that one asks for all. Two are in test_reliability."""

from __future__ import annotations

import math

import pytest
import torch

from adagrpo.errors import NotFinite
from adagrpo.rewards import BadReward
from adagrpo.rewards.scoring import ask_reward
from adagrpo.trainer.processes import Processes, SharedReward, processes
from adagrpo.types import Histories

HISTORIES = Histories(torch.tensor([[1]]), torch.tensor([1]))


def test_one_process_alone_does_everything():
    alone = processes()
    assert alone.is_main_process and alone.count == 1
    assert [*alone.share("abc")] == [(0, "a"), (1, "b"), (2, "c")]
    assert alone.gather({"a": math.inf}) == [{"a": math.inf}] and alone.broadcast("word") == "word"
    parameter = torch.nn.Parameter(torch.ones(2))
    alone.sum_gradients_([parameter])
    assert parameter.grad is None
    alone.part()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_micro_batch_has_one_process(count):
    shares = [list(Processes(rank, count).share("abcd")) for rank in range(count)]
    assert sorted(part for share in shares for part in share) == [*enumerate("abcd")]


class Answer:
    name = "mine"

    def __init__(self, scores, members=()):
        self.scores, self.members = torch.tensor(scores), members

    def score(self, histories, items):
        return self.scores


def test_a_shared_reward_is_the_reward_by_its_own_name():
    items = torch.tensor([[4, 5]])
    shared = SharedReward(Answer([[1.0, 2.0]]), Processes())
    assert shared.score(HISTORIES, items).tolist() == [[1.0, 2.0]]
    with pytest.raises(BadReward, match=r"must return \(1, 2\) scores, got \(1, 1\)"):
        SharedReward(Answer([[1.0]]), Processes()).score(HISTORIES, items)
    member = Answer([[math.nan, 2.0]])
    member.name = "its member"
    with pytest.raises(NotFinite, match="the reward its member gave NaN"):
        ask_reward(SharedReward(Answer([[math.nan, 2.0]], [member]), Processes()), HISTORIES, items)
