"""Checkpoints: whole or refused by name, one at a time, with the best weights inside."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adagrpo.errors import UserError
from adagrpo.trainer.checkpoints import Progress, load_weights, restore, save, save_weights


def made(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1}]
    groups.append({"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0})
    return model, torch.optim.AdamW(groups, lr=0.1, fused=True)


def move(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((1, 3), float(step + 1))).square().sum().backward()
        optimizer.step()


@pytest.fixture
def saved(tmp_path):
    """A checkpoint at step 3, and the model, optimiser and progress that it holds."""
    model, optimizer = made()
    progress = Progress(step=1)
    progress.offer(0.25, model)
    move(model, optimizer, 3)
    progress.step, progress.skipped, progress.task = 3, 1, {"spread": 0.1 + 0.2}
    save(tmp_path, model, optimizer, progress)
    return tmp_path, model, optimizer, progress


def test_a_checkpoint_brings_back_every_bit(saved):
    work, model, optimizer, progress = saved
    other, fresh = made(seed=1)
    actual = restore(work, other, fresh)
    assert repr(actual) == repr(progress) and actual.task["spread"] == 0.1 + 0.2 and actual.best_step == 1
    for name, tensor in progress.best_weights.items():
        assert torch.equal(actual.best_weights[name], tensor)
        assert not torch.equal(tensor, model.state_dict()[name])
    move(model, optimizer, 2)
    move(other, fresh, 2)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_only_the_newest_checkpoint_stays(saved):
    work, model, optimizer, progress = saved
    progress.step = 12
    save(work, model, optimizer, progress)
    assert [path.name for path in (work / "checkpoints").iterdir()] == ["000000012"]


def test_saving_the_same_step_again_replaces_it(saved):
    work, model, optimizer, progress = saved
    progress.skipped = 2
    save(work, model, optimizer, progress)
    assert restore(work, *made()).skipped == 2


def test_nothing_to_restore(tmp_path):
    model, optimizer = made()
    assert restore(tmp_path, model, optimizer) is None
    (tmp_path / "checkpoints").mkdir()
    assert restore(tmp_path, model, optimizer) is None


FILES = ("model.safetensors", "best.safetensors", "optimizer.safetensors", "progress.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_refused_by_name(saved, name, damage):
    path = saved[0] / "checkpoints" / "000000003" / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-1])
    else:
        path.unlink()
    model, optimizer = made(seed=1)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(UserError) as error:
        restore(saved[0], model, optimizer)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))


def test_a_damaged_newest_checkpoint_does_not_fall_back_to_an_older_one(saved):
    work, model, optimizer, progress = saved
    checkpoints = work / "checkpoints"
    (checkpoints / "000000003").rename(work / "kept")
    progress.step = 4
    save(work, model, optimizer, progress)
    (work / "kept").rename(checkpoints / "000000003")
    (checkpoints / "000000004" / "progress.json").write_text("{}")
    with pytest.raises(UserError, match=r"000000004/progress\.json"):
        restore(work, *made())


def test_a_kill_while_saving_leaves_the_checkpoint_before(saved, monkeypatch):
    work, model, optimizer, progress = saved
    for name in ("seal", "publish"):
        with monkeypatch.context() as patch:
            patch.setattr(f"adagrpo.trainer.checkpoints.{name}", lambda *args, **kwargs: (_ for _ in ()).throw(Stop))
            progress.step = 4
            with pytest.raises(Stop):
                save(work, model, optimizer, progress)
        assert restore(work, *made()).step == 3
    save(work, model, optimizer, progress)
    assert [path.name for path in (work / "checkpoints").iterdir()] == ["000000004"]


class Stop(BaseException):
    pass


def test_the_first_of_equal_values_is_best_and_its_weights_are_a_copy():
    model, _ = made()
    progress = Progress()
    for step, value in enumerate([0.1, 0.3, 0.3, 0.2]):
        progress.step = step
        with torch.no_grad():
            model[0].bias.fill_(float(step))
        progress.offer(value, model)
    assert (progress.best_step, progress.best_value) == (1, 0.3)
    assert torch.equal(progress.best_weights["0.bias"], torch.ones(4))


def test_weights_of_a_finished_fit_come_back(tmp_path):
    model, other = made()[0], made(seed=1)[0]
    save_weights(tmp_path / "best", model.state_dict(), 17)
    assert load_weights(tmp_path / "best", other) == 17
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
