"""Passes in step: threads in the place of processes, and models that say what is done with them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from adagrpo.trainer.lockstep import Lockstep


class Model:
    def __init__(self, log, name=""):
        self.log, self.name, self.weight = log, name, torch.ones(2, requires_grad=True)

    def open(self):
        self.log.append(f"open{self.name}")

    def close(self):
        self.log.append(f"close{self.name}")

    def idle_pass(self):
        self.log.append(f"idle{self.name}")
        return self.weight * 3


def together(works: Sequence[Callable[[Lockstep, list[str]], object]], models: int = 1) -> list[list[str]]:
    """Carry out each process's work; returns what was done with the models of each."""
    count = len(works)
    words, meeting = [0] * count, threading.Barrier(count, timeout=20)

    def process(rank: int) -> list[str]:
        def tell(own: int) -> list[int]:
            words[rank] = own
            meeting.wait()
            told = [*words]
            meeting.wait()  # before anybody says the next word
            return told

        log: list[str] = []
        lockstep = Lockstep(tell)
        lockstep.models += [Model(log, str(number) if models > 1 else "") for number in range(models)]
        works[rank](lockstep, log)
        return log

    with ThreadPoolExecutor(count) as pool:
        return [*pool.map(process, range(count))]


def passes(*models: int) -> Callable[[Lockstep, list[str]], None]:
    def work(lockstep: Lockstep, log: list[str]) -> None:
        for number in models:
            lockstep.before_pass(lockstep.models[number])
            log.append("pass")
        lockstep.finish()

    return work


def test_all_make_as_many_passes_as_the_one_that_has_most_to_do():
    one, none, two = together([passes(0, 0, 0), passes(), passes(0, 0)])
    assert one == ["open", "pass"] * 3 + ["close"]
    assert none == ["open", "idle"] * 3 + ["close"]
    assert two == ["open", "pass"] * 2 + ["open", "idle"] + ["close"]
    assert together([passes(), passes()]) == [[], []]


def test_idle_passes_are_of_the_model_that_the_others_use():
    busy, idle = together([passes(1, 0), passes()], models=2)
    assert busy == ["open1", "pass", "open0", "pass", "close1", "close0"]
    assert idle == ["open1", "idle1", "open0", "idle0", "close1", "close0"]


def test_two_models_at_once_are_a_fault():
    with pytest.raises(RuntimeError, match="passes of 2 sharded models were begun at the same time"):
        together([passes(0), passes(1)], models=2)


def test_every_pass_is_part_of_the_loss_and_adds_nothing_to_it():
    def work(lockstep: Lockstep, log: list[str]) -> None:
        model = lockstep.models[0]
        own = torch.full((2,), 2.0, requires_grad=True)
        with lockstep.one_loss() as finish:
            lockstep.before_pass(model)
            lockstep.after_pass(own * 5)
            nothing = finish()
        nothing.backward()
        assert nothing.item() == 0 and own.grad.tolist() == [0, 0]
        assert "close" not in log, "the gradient needs what was gathered"
        lockstep.reopen()
        lockstep.close()
        log.append("end")

    def idle(lockstep: Lockstep, log: list[str]) -> None:
        with lockstep.one_loss() as finish:
            nothing = finish()
        nothing.backward()
        assert nothing.item() == 0 and lockstep.models[0].weight.grad.tolist() == [0, 0]
        lockstep.close()

    first, second = together([work, idle])
    assert first == ["open", "open", "close", "end"] and second == ["open", "idle", "close"]
