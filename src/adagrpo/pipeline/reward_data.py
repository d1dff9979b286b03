"""What rewards that are controls, corrupted or trusted read of a run: item groups, other runs, what is seldom seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adagrpo.config.reward import (
    CallableOptions,
    CorruptedOptions,
    LightGBMOptions,
    PoliciesOptions,
    RewardOptions,
    SequentialOptions,
    TrustedOptions,
)
from adagrpo.data.prepared import load_item_ids
from adagrpo.errors import UserError
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.run import Run
from adagrpo.policies import Policy
from adagrpo.rewards import PoliciesReward, Reward, find_module
from adagrpo.rewards.corrupted import CorruptedReward, fewest, item_groups
from adagrpo.rewards.trust import Items
from adagrpo.semantic_ids import Catalog

__all__ = ["corrupted_reward", "files_of_start", "named_by", "policies_reward", "refuse_other_items", "trust_items"]

TRUST_GROUPS = 50  # of items, the largest ones: a weight for each of thousands of groups is known of none


def files_of_start(folder: Path) -> list[Path]:
    """The files of another run that decide its starting policy: items, Semantic IDs, weights."""
    names = ("prepare/items.parquet", "tokenize/codes.parquet", "tokenize/codes.json", "sft/best/model.safetensors")
    return [folder / name for name in names]


def named_by(options: RewardOptions, run: Run) -> list[Path]:
    """The files that a reward and its members name, which no run makes: modules, models, checkpoints of other runs."""
    match options:
        case CallableOptions():
            own = [find_module(options.function, run.code), *(run.data / name for name in options.files)]
        case LightGBMOptions() | TrustedOptions():
            own = [run.data / options.model]
        case SequentialOptions(checkpoint=str(folder)):
            own = [run.data / folder / "model.safetensors"]
        case PoliciesOptions():
            own = [path for name in options.runs for path in files_of_start(run.data / name)]
        case _:
            own = []
    return own + [path for part in options.parts for path in named_by(part, run)]


def refuse_other_items(data: RunData, checkpoint: Path) -> None:
    """Refuse a ranker of another run whose items are not these: it knows them by number alone.

    Args:
        data: of this run.
        checkpoint: `<run>/ranker/best` or `final`; of a folder elsewhere nothing is known.

    Raises:
        UserError: the run of the checkpoint has other items.
    """
    other = checkpoint.parent.parent / "prepare"
    if (other / "items.parquet").is_file() and not load_item_ids(other).equals(load_item_ids(data.prepared)):
        raise UserError(f"reward.checkpoint: {checkpoint} is of a run with other items; name one on the same data")


def policies_reward(
    data: RunData, folders: list[Path], load: Callable[[Catalog, Path], Policy[Any, Any]]
) -> PoliciesReward:
    """The starting policies of other runs, each with the Semantic IDs that it was trained on.

    Args:
        data: of this run.
        folders: of the others.
        load: makes the policy of a catalogue from a checkpoint folder.

    Raises:
        UserError: policies that are language models, or a run with other items.
    """
    if data.config.policy.kind == "causal_lm":
        raise UserError("reward.kind: 'policies' reads compact and hybrid policies; found policy.kind causal_lm")
    own, policies, codes, rows = data.item_ids.to_list(), [], [], []
    for folder in folders:
        place = {name: row for row, name in enumerate(load_item_ids(folder / "prepare").to_list())}
        if place.keys() != set(own):
            raise UserError(f"reward.runs: {folder} has other items; name runs on the same data")
        catalog = Catalog.read(folder / "tokenize" / "codes.parquet").to(data.device)
        policy = load(catalog, folder / "sft" / "best")
        policies.append(policy.eval().requires_grad_(False).frozen())
        codes.append(catalog.codes)
        rows.append(torch.tensor([place[name] for name in own], device=data.device))
    return PoliciesReward(policies, codes, rows)


def corrupted_reward(data: RunData, member: Reward, options: CorruptedOptions) -> CorruptedReward:
    """A reward that is made wrong; where, is read from the training split and the item table.

    Items that came later change nothing of that: their groups are wrong where those are, and nobody has seen them.
    """
    training, items, users, shortest = data.training, None, None, 0
    trained = data.version.trained
    if options.by == "user_group":
        users = fewest(training.lengths, options.share)
        shortest = int(training.lengths[users].max(initial=0))
        if shortest >= data.config.max_history:  # whoever has more looks alike: histories are cut there
            raise UserError(
                f"reward.share: its users have up to {shortest} items and max_history is {data.config.max_history}, so"
                " that a history cannot say whether it is one of theirs; take a smaller share or a longer history"
            )
    elif options.by == "exposure":
        items = fewest(training.counts(trained), options.share)
        items = np.append(items, np.full(data.num_items - trained, options.share > 0))
    else:
        attributes = data.items["attributes"].to_list()
        items = item_groups(attributes[:trained], options.share, options.seed)
        wrong = {names[0] for names, mark in zip(attributes, items, strict=False) if mark and names}
        later = [bool(names) and names[0] in wrong for names in attributes[trained:]]
        items = np.append(items, np.array(later, np.bool_))
    return CorruptedReward(
        member,
        items=items,
        users=users,
        shortest=shortest,
        strength=options.strength,
        how=options.how,
        seed=options.seed,
    )


def trust_items(data: RunData, groups: Sequence[str] | None = None) -> Items:
    """What the weights of a trusted reward know of the items: how often each was seen, and its first attribute.

    Args:
        data: of the run.
        groups: names by number, as the weights were fitted; None numbers those of the items that were trained with.
    """
    names = [names[0] if names else "" for names in data.items["attributes"].to_list()]
    if groups is None:
        unique, sizes = np.unique(np.array(names[: data.version.trained]), return_counts=True)
        largest = np.argsort(np.argsort(-sizes, kind="stable"), kind="stable") < TRUST_GROUPS
        groups = unique[(unique != "") & largest].tolist()
    number = {name: place for place, name in enumerate(groups)}
    numbers = np.array([number.get(name, -1) for name in names], np.int64)
    return Items(data.training.counts(data.num_items), numbers, tuple(groups))
