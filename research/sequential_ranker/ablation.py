"""Which parts of a recipe make a sequential ranker good alone? One row a variant, measured on validation cases.

    python -m research.sequential_ranker.ablation --data DIR --set amazon-beauty
    python -m research.sequential_ranker.ablation --data DIR --set amazon-beauty --out runs/ranker --seed 1

A variant is `Settings` with some of its fields changed. Each is trained on all but the last two items of every user and
ranks the second last one among the whole catalogue without the user's history. Test items are not read. With `--out`
the package's own ranker is fitted by `recipes/<set>.yaml` instead, and the row has its test figures beside the others.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from adagrpo.config import load_config
from adagrpo.console import StderrConsole
from adagrpo.data.sequences import length_bucketed_batches, pad
from adagrpo.evaluation.predictions import rank_by_ranker
from adagrpo.networks import Dropout, initialise, mixed_precision, sampled_softmax_loss
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.report.page import read_rows
from adagrpo.types import Histories, Ragged
from research.command import run
from research.rows import add_row

RECIPES = Path(__file__).parents[2] / "recipes"
RESULTS = Path(__file__).with_name("rows.jsonl")
VALIDATIONS = 8


@dataclass(frozen=True)
class Settings:
    """A recipe."""

    width: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.5
    attention_dropout: float = 0.0
    output_dropout: bool = False
    norm: Literal["pre", "post"] = "pre"
    embedding_norm: bool = True
    positions: Literal["start", "end", "distance", "none"] = "distance"  # distance: a bias of attention, as in T5
    bias: bool = True
    rows: Literal["users", "prefixes"] = "users"  # a row a user, or one for each target, with a dropout of its own
    negatives: int = 1024  # 0: the whole catalogue
    batch: int = 64  # rows a step
    rate: float = 2e-3
    decay: float = 0.01
    average: float = 0.999
    epochs: int = 12
    history: int = 50
    std: float = 0.02


FIRST = Settings(output_dropout=True, embedding_norm=False, positions="start", rate=1e-3)
NORMED = replace(FIRST, output_dropout=False, embedding_norm=True)
VARIANTS: dict[str, Settings] = {
    "as it was": replace(FIRST, width=128, dropout=0.3, batch=256, negatives=2048, history=20),
    "smaller steps, width 64, dropout .5": FIRST,
    "and states not dropped out": replace(FIRST, output_dropout=False),
    "and item vectors normalised": NORMED,
    "the same, post-norm": replace(NORMED, norm="post"),
    "the same, post-norm, order by distance": replace(NORMED, norm="post", positions="distance"),
    "and order by distance, learning rate .002": Settings(),
    "learning rate .004": Settings(rate=4e-3),
    "attention dropped out": Settings(attention_dropout=0.5),
    "width 128": Settings(width=128),
    "dropout .3": Settings(dropout=0.3),
    "order by place": Settings(positions="start"),
    "256 users a step": Settings(batch=256),
    "a history of 20": Settings(history=20),
    "item vectors as they are": Settings(embedding_norm=False),
    "states dropped out": Settings(output_dropout=True),
    "whole catalogue": Settings(negatives=0),
    "a row for each prefix": Settings(rows="prefixes", batch=376),
}


class Data(NamedTuple):
    """Logs, split."""

    training: Ragged  # (U,)
    targets: NDArray[np.int64]  # (U,) for validation
    items: int


def load(folder: Path) -> Data:
    """All users' items but the last, which is the test's."""
    table = pl.read_parquet(folder / "interactions.parquet").sort("user_id", "position")
    items = table["item_id"].to_numpy().astype(np.int32)
    offsets = np.concatenate([[0], np.bincount(table["user_id"].to_numpy()).cumsum()])
    starts, lengths = offsets[:-1], np.diff(offsets) - 2
    training = Ragged(Ragged(items, offsets).parts(starts, lengths), np.concatenate([[0], lengths.cumsum()]))
    return Data(training, items[offsets[1:] - 2].astype(np.int64), int(items.max()) + 1)


class Block(nn.Module):
    """Causal attention and a feed-forward layer, normalised before (pre) or after (post) the sum."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        width, self.settings = settings.width, settings
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.query_key_value, self.leave = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout, self.attention_dropout = Dropout(settings.dropout), Dropout(settings.attention_dropout)
        self.distances = nn.Embedding(settings.history, settings.heads) if settings.positions == "distance" else None

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, T, D) to the same."""
        first, second = self.norms
        if self.settings.norm == "pre":
            inputs = inputs + self.dropout(self.attend(first(inputs)))
            whole: Tensor = inputs + self.dropout(self.feed(second(inputs)))
            return whole
        inputs = first(inputs + self.dropout(self.attend(inputs)))
        output: Tensor = second(inputs + self.dropout(self.feed(inputs)))
        return output

    def attend(self, inputs: Tensor) -> Tensor:
        """Attention alone."""
        batch, length, width = inputs.shape
        heads = self.settings.heads
        packed = self.query_key_value(inputs).view(batch, length, 3, heads, width // heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        scores = scores + torch.full((length, length), -torch.inf).triu(1)
        if self.distances is not None:
            places = torch.arange(length)
            distance = (places.unsqueeze(1) - places).clamp(min=0)
            scores = scores + self.distances(distance).permute(2, 0, 1)
        weights = self.attention_dropout(scores.softmax(-1, dtype=torch.float32).to(value.dtype))
        output: Tensor = self.leave((weights @ value).transpose(1, 2).reshape(inputs.shape))
        return output


class Model(nn.Module):
    """A causal transformer over item vectors, which are also what its states are compared with."""

    def __init__(self, settings: Settings, items: int, seed: int) -> None:
        super().__init__()
        self.settings, self.items = settings, nn.Embedding(items, settings.width)
        self.bias = nn.Embedding(items, 1)
        self.positions = nn.Embedding(settings.history, settings.width)
        self.blocks = nn.Sequential(*(Block(settings) for _ in range(settings.layers)))
        self.norm = nn.LayerNorm(settings.width) if settings.norm == "pre" else nn.Identity()
        self.enter = nn.LayerNorm(settings.width) if settings.embedding_norm else nn.Identity()
        self.dropout = Dropout(settings.dropout)
        initialise(self, std=settings.std, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.bias.weight)
        self.bias.weight.requires_grad_(settings.bias)

    def forward(self, histories: Histories) -> Tensor:
        """(B, T, D) states."""
        vectors = self.items(histories.items)
        places = torch.arange(vectors.shape[1])
        if self.settings.positions == "end":
            vectors = vectors + self.positions((histories.lengths.unsqueeze(1) - 1 - places).clamp(min=0))
        elif self.settings.positions == "start":
            vectors = vectors + self.positions(places)
        output: Tensor = self.norm(self.blocks(self.dropout(self.enter(vectors))))
        return output

    def loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of (N, D) states."""
        settings, (everything, _) = self.settings, self.items.weight.shape
        positive = (states * self.items(targets)).sum(-1) + self.bias(targets).squeeze(-1)
        if not settings.negatives:
            negatives = torch.arange(everything)
            vectors, bias = self.items.weight, self.bias.weight.squeeze(-1)
        else:
            negatives = torch.randint(everything, (settings.negatives,))
            vectors, bias = self.items(negatives), self.bias(negatives).squeeze(-1)
        return sampled_softmax_loss(states, positive, vectors, bias, targets, negatives).mean()


def batches(data: Data, settings: Settings, seed: int) -> Iterator[list[tuple[Histories, Tensor, Tensor, Tensor]]]:
    """Epochs of batches: histories, and rows, positions and targets of their samples."""
    training = data.training
    if settings.rows == "prefixes":
        users = np.repeat(np.arange(len(training)), np.maximum(training.lengths - 1, 0))
        counts = np.maximum(training.lengths - 1, 0)
        ends = np.arange(len(users)) - np.repeat(counts.cumsum() - counts, counts) + 2  # items, the target among them
        lengths = np.minimum(ends, settings.history + 1)
        values = training.parts(training.offsets[users] + ends - lengths, lengths)
        training = Ragged(values, np.concatenate([[0], lengths.cumsum()]))
    epoch = 0
    while True:
        made = []
        for rows in length_bucketed_batches(training.lengths, batch_size=settings.batch, seed=seed, epoch=epoch):
            padded = pad(training, rows, settings.history + 1)
            lengths = padded.lengths - 1
            if settings.rows == "prefixes":
                where, places = torch.arange(len(rows)), lengths - 1
            else:
                real = torch.arange(padded.items.shape[1] - 1) < lengths.unsqueeze(1)
                where, places = real.nonzero(as_tuple=True)
            histories = Histories(padded.items[:, :-1].contiguous(), lengths)
            made.append((histories, where, places, padded.items[where, places + 1]))
        yield made
        epoch += 1


@torch.no_grad()
def ranks(model: Model, data: Data) -> NDArray[np.int64]:
    """(U,) rank of each validation target from 0, among what is not in the history."""
    model.eval()
    found = np.zeros(len(data.targets), np.int64)
    order = np.argsort(data.training.lengths, kind="stable")
    for first in range(0, len(order), 256):
        rows = order[first : first + 256]
        histories = pad(data.training, rows, model.settings.history)
        with mixed_precision(model):
            states = model(histories)[torch.arange(len(rows)), histories.lengths - 1]
        scores = functional.linear(states.float(), model.items.weight, model.bias.weight.squeeze(-1))
        targets = torch.from_numpy(data.targets[rows])
        own = scores.gather(1, targets.unsqueeze(1))
        whole = pad(data.training, rows, 10**6)
        users = torch.arange(len(rows)).repeat_interleave(whole.lengths)
        items = torch.from_numpy(data.training.parts(data.training.offsets[rows], data.training.lengths[rows])).long()
        scores[users, items] = -torch.inf
        found[rows] = (scores > own).sum(1).numpy()
    return found


def measure(found: NDArray[np.int64]) -> dict[str, float]:
    """HR@10 and NDCG@10."""
    hit = found < 10
    return {"hr@10": float(hit.mean()), "ndcg@10": float((hit / np.log2(found + 2)).mean())}


def train(data: Data, settings: Settings, seed: int) -> dict[str, object]:
    """Fit a variant; its best validation, by NDCG@10, and all the others."""
    torch.manual_seed(seed)
    model = Model(settings, data.items, seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.decay},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.98), fused=True)
    averages = [p.detach().clone() for p in trained]
    source = batches(data, settings, seed)
    step, seconds, curve = 0, 0.0, []
    for epoch in range(settings.epochs):
        started, total, count = time.process_time(), 0.0, 0
        steps = next(source)
        model.train()
        for histories, rows, places, targets in steps:
            progress = step / (len(steps) * settings.epochs)
            rate = 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
            for group in optimizer.param_groups:
                group["lr"] = settings.rate * min(1.0, (step + 1) / 200) * rate
            with mixed_precision(model):
                states = model(histories)[rows, places]
                states = model.dropout(states) if settings.output_dropout else states
                loss = model.loss(states, targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            decay = min(settings.average, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(averages, list[Tensor](trained), 1 - decay)
            step, total, count = step + 1, total + loss.item() * len(targets), count + len(targets)
        seconds += time.process_time() - started
        if (epoch + 1) % max(1, settings.epochs // VALIDATIONS) == 0:
            for p, average in zip(trained, averages, strict=True):
                p.data, average.data = average.data, p.data
            values = measure(ranks(model, data))
            curve.append({"epoch": epoch + 1, "loss": total / count, "seconds": round(seconds), **values})
            for p, average in zip(trained, averages, strict=True):
                p.data, average.data = average.data, p.data
            print(*(f"{name} {value:.4g}" for name, value in curve[-1].items()), flush=True)
    best = max(curve, key=lambda row: row["ndcg@10"])
    return {**best, "all_seconds": round(seconds), "validations": curve}


def fit_package(folder: Path, recipe: str, out: Path, seed: int) -> dict[str, object]:
    """Fit the package's ranker by a recipe; what its best checkpoint reaches on validation and test."""
    config = load_config(RECIPES / f"{recipe}.yaml", ["max_history=50", f"seed={seed}"])
    fitted = Run(out, config, folder, StderrConsole())
    fitted.prepare()
    started = time.process_time()
    fitted.ranker()
    seconds = round(time.process_time() - started)
    data = RunData(fitted)
    ranker = Models(data).ranker(fitted.path("ranker", "best"))
    given: dict[str, Any] = {"batch_size": 256, "max_history": config.max_history, "exclude_history": True}
    values = {split: rank_by_ranker(ranker, data.cases(split), **given) for split in ("validation", "test")}
    kept = {split: {name: found[name] for name in ("hr@10", "ndcg@10")} for split, found in values.items()}
    return {
        "variant": "package",
        "settings": config.ranker.model_dump(mode="json"),
        "seconds": seconds,
        **kept,
    }


def main() -> None:
    """Measure what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--set", required=True, help="amazon-beauty, amazon-toys, ...")
    parser.add_argument("--only", nargs="*", help="names of variants")
    parser.add_argument("--out", type=Path, help="fit the package's ranker, here")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    common = {"data": options.set, "seed": options.seed}
    if options.out:
        add_row(RESULTS, common | fit_package(options.data / options.set, options.set, options.out, options.seed))
        return
    data = load(options.data / options.set)
    rows = read_rows(RESULTS) if RESULTS.exists() else []
    done = {row["variant"] for row in rows if (row["data"], row["seed"]) == (options.set, options.seed)}
    for name, settings in VARIANTS.items():
        if name not in done and name in (options.only or VARIANTS):
            print(name, flush=True)
            values = train(data, settings, options.seed)
            add_row(RESULTS, common | {"variant": name, "settings": asdict(settings), **values})


if __name__ == "__main__":
    run(main)
