"""The RQ-VAE: its loss against a loop by hand, restarts, and that it learns what it should."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adagrpo.semantic_ids.quantization import _losses, _restart, reconstruction_error, rq_vae


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make small steps slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def structured(items: int = 240, width: int = 12, seed: int = 0) -> np.ndarray:
    """Vectors near the sums of one of 6 coarse and one of 5 fine directions."""
    rng = np.random.default_rng(seed)
    coarse, fine = rng.normal(size=(6, width)), rng.normal(size=(5, width)) * 0.4
    rows = coarse[rng.integers(0, 6, items)] + fine[rng.integers(0, 5, items)]
    return (rows + rng.normal(size=rows.shape) * 0.02).astype(np.float32)


def small(vectors: np.ndarray, **changes: Any):
    options = {"epochs": 60, "batch_size": 64, "learning_rate": 3e-3, "hidden": 32, "width": 8}
    return rq_vae(vectors, **{"levels": 2, "codes": 8, "seed": 0, **options, **changes})  # type: ignore[arg-type]


def test_it_learns_and_repeats() -> None:
    vectors = structured()
    state = torch.random.get_rng_state()
    epochs: list[tuple[int, int]] = []
    made = small(vectors, report=lambda *counts: epochs.append(counts))
    assert epochs == [(epoch, 60) for epoch in range(1, 61)]
    again, other = small(vectors), small(vectors, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert made.codes.shape == (240, 2) and made.codes.dtype == np.int64 and made.level_sizes == (8, 8)
    np.testing.assert_array_equal(made.codes, again.codes)
    np.testing.assert_array_equal(made.reconstruct(), again.reconstruct())
    assert not np.array_equal(made.codes, other.codes)
    assert made.points.shape == (240, 8) and made.reconstruct().shape == vectors.shape
    error, unfitted = (
        reconstruction_error(vectors, actual.reconstruct()) for actual in (made, small(vectors, epochs=1))
    )
    assert error < 0.15 < 0.5 < unfitted


def test_the_codes_are_the_nearest_of_what_is_left_over() -> None:
    made = small(structured(), epochs=5)
    for level, codebook in enumerate(made.codebooks):
        gaps = ((made.residual(level)[:, None].astype(np.float64) - codebook) ** 2).sum(axis=2)
        chosen = gaps[np.arange(len(gaps)), made.codes[:, level]]
        np.testing.assert_allclose(chosen, gaps.min(axis=1), rtol=1e-4, atol=1e-6)


def test_the_loss_and_where_its_gradients_go() -> None:
    """Scalars: encoder z = 2 x, decoder 3 z; x = 1; two levels with the codes 1.5 and 0.4 nearest."""
    encoder, decoder = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    encoder.weight.data.fill_(2.0)
    decoder.weight.data.fill_(3.0)
    books = [nn.Parameter(torch.tensor([[-9.0], [1.5]])), nn.Parameter(torch.tensor([[0.4], [9.0]]))]
    loss, chosen = _losses(encoder, decoder, books, torch.tensor([[1.0]]), 0.25)
    assert [picked.tolist() for picked in chosen] == [[1], [0]]
    # r_1 = 2, r_2 = 0.5, left over 0.1, so the decoder sees 1.9
    expected = (1 - 3 * 1.9) ** 2 + 1.25 * 0.5**2 + 1.25 * 0.1**2
    assert loss.tolist() == pytest.approx([expected], rel=1e-5)
    loss.sum().backward()
    straight = -2 * (1 - 5.7) * 3 * 1.0  # through the quantiser as if it were the identity, dz/dw = x = 1
    assert encoder.weight.grad is not None and decoder.weight.grad is not None
    assert encoder.weight.grad.item() == pytest.approx(straight + 0.25 * 2 * (0.5 + 0.1), rel=1e-5)
    assert decoder.weight.grad.item() == pytest.approx(-2 * (1 - 5.7) * 1.9, rel=1e-5)
    first, second = (book.grad for book in books)
    assert first is not None and second is not None
    np.testing.assert_allclose(first[:, 0], [0, -2 * 0.5], rtol=1e-5)
    np.testing.assert_allclose(second[:, 0], [-2 * 0.1, 0], rtol=1e-4)


def test_dead_codes_move_and_forget_and_the_others_stay() -> None:
    book = nn.Parameter(torch.arange(6.0).reshape(3, 2))
    optimiser = torch.optim.Adam([book], lr=0.0)
    book.sum().backward()
    optimiser.step()
    _restart(book, torch.tensor([False, True, False]), -torch.arange(8.0).reshape(4, 2), optimiser)
    assert book.tolist() == [[0.0, 1.0], [-2.0, -3.0], [4.0, 5.0]]
    moments = optimiser.state[book]["exp_avg"]
    assert moments[1].tolist() == [0.0, 0.0] and (moments[[0, 2]] > 0).all()


def test_dead_codes_are_restarted_while_it_trains() -> None:
    """A warm-up of none and few distinct starts leave codes dead; after the restarts every code is in use."""
    vectors = structured(items=400)
    made = small(vectors, levels=1, codes=24, epochs=40)
    assert (np.bincount(made.codes[:, 0], minlength=24) > 0).sum() >= 22


@pytest.mark.parametrize("items", [1, 3])
def test_few_items(items: int) -> None:
    made = small(structured()[:items], epochs=3)
    assert all(size <= items for size in made.level_sizes) and np.isfinite(made.reconstruct()).all()


@pytest.mark.parametrize(
    ("vectors", "changes"),
    [
        (np.empty((0, 3), dtype=np.float32), {}),
        (np.array([[np.inf]], dtype=np.float32), {}),
        (np.ones((2, 2), dtype=np.float32), {"epochs": 0}),
        (np.ones((2, 2), dtype=np.float32), {"levels": 0}),
        (np.ones((2, 2), dtype=np.float32), {"learning_rate": 0.0}),
        (np.ones((2, 2), dtype=np.float32), {"commitment": -1.0}),
    ],
)
def test_bad_arguments(vectors: np.ndarray, changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        small(vectors, **changes)
