"""The policies that train on a processor: share of the matrix rate, cost of the gated step, full evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from adagrpo.config import FitConfig, load_config
from adagrpo.evaluation.predictions import predict
from adagrpo.networks import autocast_dtype, mixed_precision
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.trainer import Arm, PostTraining, Supervised, Task
from benchmarks.rows import Row, median_spread, timed, timed_in_turn

__all__ = ["adagrpo_vs_nll_step", "evaluate_beauty", "models_of", "nll_bf16_share", "q_min_that_admits", "stepper"]

RECIPE = Path(__file__).parent.parent / "recipes" / "amazon-beauty.yaml"
STEPS = 8  # optimiser steps that one timing covers
SIZE, PRODUCTS = 2048, 8  # of matrices that are multiplied, and how many products one timing covers


def models_of(data: Path, work: Path, kind: str, *more: str) -> Models:
    """Amazon Beauty prepared and tokenized, with an sft policy of two epochs."""
    settings = [f"policy.kind={kind}", "sft.epochs=2", "sft.validations=0", "sft.average=0", *more]
    run = Run(work / f"beauty-{kind}", load_config(RECIPE, settings), data / "amazon-beauty")
    for stage in (Run.prepare, Run.tokenize, Run.sft):
        stage(run)
    return Models(RunData(run))


def products_of(dtype: torch.dtype) -> Callable[[], None]:
    """A function that takes `PRODUCTS` products of square matrices."""
    left, right = (torch.randn(SIZE, SIZE).to(dtype) for _ in range(2))

    def products() -> None:
        for _ in range(PRODUCTS):
            torch.mm(left, right)

    return products


def stepper(device: torch.device, task: Task[Any], count: int = STEPS) -> tuple[list[float], Callable[[], None]]:
    """A function that takes the next `count` optimiser steps as the training loop does, and the admissions it saw."""
    policy: nn.Module = task.policy  # type: ignore[attr-defined]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, fused=True)
    place, admissions = [0], list[float]()

    def steps() -> None:
        for _ in range(count):
            policy.eval()
            with mixed_precision(policy):
                micros, values = task.begin(place[0])
                optimizer.zero_grad()
                terms = [term for micro in micros for term in task.loss(micro)[0].values()]
            torch.autograd.backward(torch.stack(terms).sum())
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            place[0] += 1
            if "admission" in values:
                admissions.append(values["admission"])

    return admissions, steps


def q_min_that_admits(share: float, build: Callable[[float], PostTraining]) -> float:
    """The `q_min` whose first step admits nearest to a share: of an untrained ranker only the count matters."""
    admissions = {}
    for q_min in (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0):
        with torch.no_grad():
            admissions[q_min] = build(q_min).begin(0)[1]["admission"]
    return min(admissions, key=lambda q_min: abs(admissions[q_min] - share))


def nll_bf16_share(data: Path, work: Path) -> list[Row]:
    """Model FLOP/s of NLL training over the measured rate of a large bf16 product."""
    models = models_of(data, work, "compact")
    schedule = models.schedule(FitConfig())
    policy = models.policy(models.run.path("sft", "best"))
    task = Supervised(policy, models.data.catalog.codes, schedule, steps=10**6, validate=dict)
    _, steps = stepper(models.data.device, task)
    with FlopCounterMode(display=False) as counter:
        steps()
    flops = counter.get_total_flops()
    dtype = autocast_dtype(models.data.device) or torch.float32
    seconds, products = timed_in_turn([steps, products_of(dtype)], repeats=15)
    rates = [PRODUCTS * 2 * SIZE**3 / second for second in products]
    value, spread = median_spread([flops / second / rate for second, rate in zip(seconds, rates, strict=True)])
    detail = {
        "gflops_a_step": flops / STEPS / 1e9,
        "matrix_gflops": median_spread(rates)[0] / 1e9,
        "dtype": str(dtype),
        "steps_a_second": STEPS / median_spread(seconds)[0],
        "epoch_s": schedule.steps_per_epoch * median_spread(seconds)[0] / STEPS,
    }
    against = f"{dtype} product of {SIZE} x {SIZE}"
    return [Row("nll_bf16_share", value, "share", spread, ">= 0.45", value >= 0.45, against, detail)]


def adagrpo_vs_nll_step(data: Path, work: Path) -> list[Row]:
    """An AdaGRPO step (G 16, about one sample in eight admitted) over an NLL step of the same policy and batches."""
    rows = []
    for kind in ("compact", "hybrid"):
        models = models_of(data, work, kind)
        schedule, weights = models.schedule(FitConfig()), models.run.path("sft", "best")
        options = models.config.objective.model_copy(update={"num_generations": 16})
        reward = models.ranker()

        def task(q_min: float) -> PostTraining:
            chosen = options.with_option("rollout_miss", "q_min", q_min)  # noqa: B023
            arm = Arm(anchored=True, lambda_=1.0, gate="rollout_miss")
            policy = models.policy(weights)  # noqa: B023
            return PostTraining(policy, models.data.catalog, reward, schedule, chosen, arm, steps=10**6, validate=dict)  # noqa: B023

        q_min = q_min_that_admits(0.12, task)
        supervised = Supervised(models.policy(weights), models.data.catalog.codes, schedule, steps=10**6, validate=dict)
        _, nll = stepper(models.data.device, supervised)
        admitted, gated = stepper(models.data.device, task(q_min))
        seconds = timed_in_turn([nll, gated], repeats=7)
        value, spread = median_spread([b / a for a, b in zip(*seconds, strict=True)])
        detail = {
            "admission": sum(admitted) / len(admitted),
            "nll_step_ms": 1000 * median_spread(seconds[0])[0] / STEPS,
            "adagrpo_step_ms": 1000 * median_spread(seconds[1])[0] / STEPS,
        }
        name = "adagrpo_vs_nll_step" if kind == "compact" else f"adagrpo_vs_nll_step_{kind}"
        rows.append(
            Row(name, value, "ratio", spread, "<= 2.5", value <= 2.5, "NLL step, same policy and batch", detail)
        )
    return rows


def evaluate_beauty(data: Path, work: Path) -> list[Row]:
    """All validation cases of Beauty, constrained and free beams of 50, without masking and without a reward."""
    rows = []
    for kind in ("compact", "hybrid"):
        models = models_of(data, work, kind)
        policy, cases = models.policy(models.run.path("sft", "best")), models.data.cases("validation")
        seconds = timed(
            lambda: predict(policy, models.data.catalog, cases, width=50, batch_size=256, max_history=20),  # noqa: B023
            repeats=3,
            warmup=0,
        )
        value, spread = median_spread(seconds)
        name = "evaluate_beauty_s" if kind == "compact" else f"evaluate_beauty_{kind}_s"
        detail = {"users": len(cases), "beam": 50}
        rows.append(Row(name, value, "s", spread, "<= 20", value <= 20, "wall clock", detail))
    return rows
