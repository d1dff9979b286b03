"""Users of a simulated marketplace who come back after its log: they are shown lists, and answer.

A day begins with who comes: each user with the same probability. Their tastes drift and their satiation wears off, see
`adagrpo.data.simulation.marketplace`; then they look at what they are shown, and the first item that is examined and
wanted is bought. Every draw is keyed by seed and day and made for all users, also those who do not come: two markets of
one world that show the same lists have the same days, and a day that is played again is the same day.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy.special import expit

from adagrpo.data.simulation.marketplace import (
    Simulation,
    Users,
    buy,
    choose,
    dwell_times,
    move_tastes,
    simulate_with_users,
    utility_logits,
)
from adagrpo.data.simulation.world import WAVES, Catalogue, Marketplace, make_catalogue, numbered_ids, unit
from adagrpo.storage.writing import atomic_file

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

VISITS, DRIFT, LOOKS, DWELL = range(4)  # what a draw of a day is for


class Answers(NamedTuple):
    """The users' responses to the lists that they are shown."""

    clicked: NDArray[np.bool_]  # (N, k) at most one a row
    dwell: Floats  # (N,) seconds with what was bought, 0 where nothing was
    utility: Floats  # (N, k) the probability that an item is wanted if it is examined
    value: Floats  # (N,) the probability that something of the list is bought


class Population:
    """The users of a world, and what they think of its items. Its state is changed in place."""

    def __init__(self, world: Marketplace, catalogue: Catalogue, users: Users) -> None:
        self.world, self.catalogue, self.users = world, catalogue, users
        self.user_ids = numbered_ids("u", world.users).to_list()
        self.item_ids = numbered_ids("i", world.items).to_list()
        self.later = np.flatnonzero(catalogue.wave == WAVES + 1)

    def come(self, day: int, share: float) -> tuple[Ints, Floats]:
        """Draw the users of a day, and move their tastes.

        Args:
            day: from 0, after the log.
            share: of the users, on average.

        Returns:
            (N,) rows of the users, ascending, and (N, D) their tastes.
        """
        rows = np.flatnonzero(self._draw(day, VISITS).random(self.world.users) < share)
        normal = self._draw(day, DRIFT).normal(size=(self.world.users, self.world.factors))
        return rows, move_tastes(self.world, self.users, rows, normal[rows])

    def tastes(
        self,
        rows: Ints,  # (N,)
    ) -> Floats:  # (N, D)
        """The whole tastes of users as they are, without a visit."""
        return unit(self.users.taste[rows] + self.world.carry * self.users.pull[rows])

    def history(self, row: int) -> list[str]:
        """The ids of what a user owns, oldest first."""
        return [self.item_ids[item] for item in self.users.owned[row, : self.users.bought[row]]]

    def utility(
        self,
        rows: Ints,  # (N,)
        taste: Floats,  # (N, D)
        items: Ints,  # (N, k)
    ) -> Floats:  # (N, k)
        """The probability that an item is wanted if it is examined; 0 for what a user owns."""
        logits = utility_logits(self.world, self.catalogue, self.users, rows, taste, items)
        owned = (self.users.owned[rows][:, None, :] == items[:, :, None]).any(axis=2)
        return np.asarray(np.where(owned, 0.0, expit(logits / max(self.world.noise, 1e-3))))

    def answer(
        self,
        day: int,
        rows: Ints,  # (N,)
        taste: Floats,  # (N, D) of `come`
        items: Ints,  # (N, k)
    ) -> Answers:
        """Users look at their lists and buy; they own what they buy from then on."""
        utility = self.utility(rows, taste, items)
        logits = utility_logits(self.world, self.catalogue, self.users, rows, taste, items)
        clicked = choose(self.world, np.where(utility > 0, logits, -np.inf), self._looks(day, items.shape[1])[rows])
        examination = (1.0 / (1.0 + np.arange(items.shape[1]))) ** self.world.position_bias
        value = 1 - np.prod(1 - examination * utility, axis=1)
        buys, dwell = clicked.any(axis=1), np.zeros(len(rows))
        if self.world.dwell_seconds:
            normal = self._draw(day, DWELL).normal(size=self.world.users)[rows[buys]]
            dwell[buys] = dwell_times(self.world, logits[clicked], normal)
        self._make_room()
        buy(self.catalogue, self.users, rows[buys], items[clicked])
        return Answers(clicked, dwell, utility, value)

    def save(self, path: Path) -> None:
        """Write the state of the users."""
        names = ("taste", "pull", "owned", "bought", "tired")
        with atomic_file(path) as place:
            save_file({name: np.ascontiguousarray(getattr(self.users, name)) for name in names}, place)

    @classmethod
    def load(cls, world: Marketplace, path: Path) -> Self:
        """The users as they were saved, in the world that they are of."""
        rng = np.random.default_rng(np.random.SeedSequence(world.seed).spawn(3)[0])
        state = load_file(path)
        none = np.empty(0, np.int64)
        return cls(world, make_catalogue(world, rng), Users(**state, last=state["taste"], moments=[], visits=none))

    def _looks(self, day: int, size: int) -> Floats:
        return self._draw(day, LOOKS).random((self.world.users, size))

    def _draw(self, day: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.world.seed, day, purpose])

    def _make_room(self) -> None:
        """One more column for purchases, where somebody's are full."""
        owned = self.users.owned
        if len(owned) and self.users.bought.max() >= owned.shape[1]:
            self.users = self.users._replace(owned=np.pad(owned, ((0, 0), (0, 16)), constant_values=-1))


def populate(world: Marketplace) -> tuple[Simulation, Population]:
    """The log of a marketplace, and its users as the log leaves them.

    Example:
        >>> simulation, users = populate(Marketplace(users=5, items=50, steps=3, slate_size=4))
        >>> rows, taste = users.come(0, 1.0)
        >>> users.answer(0, rows, taste, np.tile(np.arange(4), (5, 1))).clicked.shape
        (5, 4)
    """
    simulation, catalogue, users = simulate_with_users(world)
    return simulation, Population(world, catalogue, users)
