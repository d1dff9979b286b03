"""Processes that fit together: what one alone does, and what each tells the others. Two are in test_reliability."""

from __future__ import annotations

import math

import pytest
import torch

from adagrpo.errors import NotFinite, ServiceError, UserError
from adagrpo.trainer.processes import LostProcess, Processes, processes


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


class Told(Processes):
    """One of two processes, of which the other's word is known beforehand."""

    def __init__(self, other, rank=0):
        super().__init__(rank, 2)
        self.other, self.told = other, []

    def gather(self, value):
        self.told.append(value)
        return [value, self.other] if self.rank == 0 else [self.other, value]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NotFinite("reward", "its reward"), ["not finite", "its reward", "reward"]),
        (UserError("field"), ["user", "field", ""]),
        (ServiceError("endpoint"), ["service", "endpoint", ""]),
        (LostProcess(), ["service", str(LostProcess()), ""]),
    ],
)
def test_an_error_of_one_is_raised_by_both(error, told):
    def fails():
        raise error

    one = Told(None)
    with pytest.raises(type(error)) as raised:
        one.agree(fails)
    assert raised.value is error and one.told == [told]
    other = Told(told, rank=1)
    with pytest.raises((NotFinite, UserError, ServiceError)) as raised:
        other.agree(lambda: 1)
    assert isinstance(error, type(raised.value)) and str(raised.value) == str(error) and other.told == [None]
    assert getattr(raised.value, "what", "") == told[2]
    assert Told(None).agree(lambda: 5) == 5


def test_of_two_errors_both_raise_the_first_process_s():
    def fails():
        raise UserError("own")

    with pytest.raises(NotFinite, match="its logits"):
        Told(["not finite", "its logits", "logits"], rank=1).agree(fails)
    with pytest.raises(RuntimeError, match="process 0: ValueError: shape"):
        Told(["ValueError", "shape", ""], rank=1).agree(lambda: 1)


def test_rows_are_those_of_a_process_s_micro_batches():
    assert Processes().rows_of([2, 3]).tolist() == [0, 1, 2, 3, 4]
    shares = [Processes(rank, 2).rows_of([2, 0, 3, 1]).tolist() for rank in range(2)]
    assert shares == [[0, 1, 2, 3, 4], [5]]
    assert Processes(2, 3).rows_of([2, 3]).tolist() == []


def test_a_share_fills_its_own_rows_and_computes_nothing_without_any(monkeypatch):
    together, whole, merged = Told(None), torch.zeros(3, 2), []
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: merged.append(tensor.clone()))
    assert together.divide(torch.tensor([0, 2]), [whole], lambda rows: [rows.unsqueeze(1).float() + 1]) == [whole]
    assert whole.tolist() == [[1, 1], [0, 0], [3, 3]] and merged[0].equal(whole)
    together.divide(torch.tensor([], dtype=torch.int64), [torch.zeros(1)], lambda rows: 1 / 0)
    assert merged[1].tolist() == [0]
    assert Processes().divide(torch.tensor([0, 2]), [whole], lambda rows: [rows]) == [None], "alone it has all rows"


def test_what_others_do_not_answer_is_one_line(monkeypatch):
    def gone(*_):
        raise RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer")

    monkeypatch.setattr("torch.distributed.all_gather", gone)
    monkeypatch.setattr("torch.distributed.all_reduce", gone)
    both = Processes(0, 2)

    def divided(processes):
        with monkeypatch.context() as patched:
            patched.setattr(processes, "agree", lambda compute: compute())
            processes.divide(torch.tensor([0]), [torch.ones(1)], lambda rows: [torch.ones(1)])

    for call in (lambda: both.gather(1), lambda: both.sum_([torch.ones(1)]), lambda: divided(both)):
        with pytest.raises(LostProcess, match="another process of this fit has ended; the same command continues"):
            call()
    both.part()  # at the end it may be gone
