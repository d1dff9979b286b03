"""Training loop: accumulation, clipping, validation, checkpoints, and bitwise-reproducible resumption.

The optimiser is AdamW with linear warm-up and cosine decay to a tenth. Random numbers are keyed by (seed, step,
micro-batch). A step with a non-finite loss, gradient, logit or reward is skipped.

With `average` > 0, an exponential moving average of the weights (Polyak & Juditsky 1992) is validated and kept, with
decay min(average, (1 + t) / (10 + t)).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from adagrpo.config import FitConfig
from adagrpo.errors import NotFinite, ServiceError, UserError
from adagrpo.networks import autocast_dtype
from adagrpo.objective import GroupSummary
from adagrpo.stopping import Terminated, deferred_signals
from adagrpo.storage.writing import write_file
from adagrpo.trainer.batches import step_key
from adagrpo.trainer.checkpoints import Progress, restore, save, save_weights
from adagrpo.trainer.pressure import TermGradients, pressure_of
from adagrpo.trainer.processes import processes
from adagrpo.trainer.task import LIMIT, Diverged, FitResult, Report, Task, Watched, fallen_in_validation


def fit(
    model: nn.Module,
    task: Task[Any],
    settings: FitConfig,
    work: Path,
    *,
    seed: int,
    files: Mapping[str, str] | None = None,  # text files to store with the weights, name to content
    report: Report = lambda step, steps, values: None,
    watched: Watched | None = None,  # stop early and write `lost.json` if the policy collapses
    until: int | None = None,  # end at this step of the schedule, if before its last
) -> FitResult:
    """Fit a model in place, continuing from the last checkpoint in `work`.

    Writes `best/`, `final/`, `steps.jsonl` and `validation.jsonl`. KeyboardInterrupt or Terminated on a signal, after
    the current step is saved; Diverged after three steps that were not finite, the state before them saved if possible;
    NotFinite in a validation.
    """
    until = task.steps if until is None else min(until, task.steps)
    loop = _Loop(model, task, settings, work, seed, files or {}, watched, until)
    loop.resume()
    # several processes would not stop at the same step; the launcher's signal ends them as they are
    with deferred_signals() if loop.processes.count == 1 else nullcontext(lambda: None) as end_if_asked:
        while loop.progress.step < until and not loop.ends_early():
            try:
                values = loop.step()
                if loop.progress.step % task.stride == 0:
                    end_if_asked()
            except (ServiceError, UserError, NotFinite, Diverged, KeyboardInterrupt, Terminated):
                loop.keep()  # what was trained before it
                raise
            report(loop.progress.step, until, values)
    return loop.finish()


class _Loop:
    def __init__(
        self,
        model: nn.Module,
        task: Task[Any],
        settings: FitConfig,
        work: Path,
        seed: int,
        files: Mapping[str, str],
        watched: Watched | None,
        until: int,
    ) -> None:
        self.task, self.settings, self.work, self.seed, self.files = task, settings, work, seed, files
        self.watched = watched
        self.processes = processes()
        self.writes = self.processes.is_main_process
        device = next(model.parameters()).device
        self.accelerator = Accelerator(
            cpu=device.type == "cpu", mixed_precision="bf16" if autocast_dtype(device) is torch.bfloat16 else "no"
        )
        trained = [p for p in model.parameters() if p.requires_grad]
        decayed = [p for p in trained if p.ndim > 1]
        others = [p for p in trained if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.model: nn.Module = model
        self.optimizer = self.accelerator.prepare_optimizer(adamw(groups, settings.learning_rate))
        self.parameters = [*decayed, *others]
        self.progress = Progress()
        if settings.average:
            self.progress.average = {
                name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad
            }
        self.torn = False  # a step is half applied, or the average half swapped: nothing to be saved
        self.saved_at = time.monotonic()
        every = max(1, task.steps // (settings.validations or 1))
        self.validate_at = {*range(every, task.steps + 1, every), until}

    def resume(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        restored = restore(self.work, self.model, self.optimizer.optimizer)
        if restored is not None:
            self.progress = restored
            self.task.load_state(restored.task)
        self.processes.broadcast("read")  # before the first process writes another
        if not self.writes:
            return
        for name in ("steps.jsonl", "validation.jsonl"):
            if restored is None:
                (self.work / name).write_text("", encoding="utf-8")
            else:
                _cut(self.work / name, restored.step)
        lost = self.progress.watch.verdict
        unjudged = bool(lost) and not self.progress.lost
        if restored is None:
            self._judge(lost)  # of step 0
        elif restored.step in self.validate_at or unjudged:
            rows = (self.work / "validation.jsonl").read_text(encoding="utf-8").splitlines()
            if not rows or json.loads(rows[-1])["step"] != restored.step:  # it failed when it was due
                self._judge(lost)
                self._save()  # the logged row and the best weights it selected belong together

    def ends_early(self) -> bool:
        lost = self.watched is not None and not self.watched.go_on and self.processes.gather(self.progress.lost)[0]
        return bool(lost) or self._no_better()

    def _no_better(self) -> bool:
        """Whether as many validations as `patience` have not been better than the best one."""
        if not self.settings.patience or self.progress.step not in self.validate_at:
            return False
        best: int = self.processes.gather(self.progress.best_step)[0]
        since = [step for step in self.validate_at if best < step <= self.progress.step]
        return len(since) >= self.settings.patience

    def step(self) -> dict[str, float]:
        step = self.progress.step
        rise = max(1, round(self.settings.warmup * self.task.steps))
        rate = self.settings.learning_rate  # times a linear warm-up, then a cosine decay to a tenth
        if step < rise:
            rate *= (step + 1) / rise
        else:
            rate *= 0.1 + 0.45 * (1 + math.cos(math.pi * (step - rise) / max(1, self.task.steps - rise)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        before = self.task.state()
        try:
            values = self._gradients(step) | {"learning_rate": rate}
        except NotFinite as error:
            values, bad, reason = {"learning_rate": rate}, [error.what], str(error)
        except BaseException:  # whatever ends it, the state before the step is what is kept
            self.task.load_state(before)
            raise
        else:
            bad = [name for name, value in values.items() if not math.isfinite(value)]
            reason = ", ".join(bad)
        if bad:
            self.task.load_state(before)
            if self.progress.skipped_in_a_row + 1 >= LIMIT * self.task.stride:
                raise Diverged(reason, step + 1, self.seed, self.task.users(step))
            self.progress.skipped += 1
            self.progress.skipped_in_a_row += 1
            values = {name: value for name, value in values.items() if name not in bad} | {"skipped": 1.0}
            values |= {f"not_finite_{name}": 1.0 for name in bad}
        else:
            self.torn = True  # until it is counted and logged
            self.optimizer.step()
            self._fold_into_average()
            self.progress.skipped_in_a_row = 0
        self.torn, lost = True, None
        self.progress.step += 1
        if self.writes:
            _append(self.work / "steps.jsonl", {"step": self.progress.step, **values})
            lost = None if self.watched is None else self.progress.watch.after_step(GroupSummary.of_row(values))
        self.torn = False
        if not self.writes:
            return values
        if self.progress.step in self.validate_at or (lost and not self.progress.lost):
            values |= {f"validation/{name}": value for name, value in self._judge(lost).items()}
        due = time.monotonic() - self.saved_at > self.settings.checkpoint_seconds
        if due and self.progress.step % self.task.stride == 0:
            self._save()
        return values

    def _gradients(self, step: int) -> dict[str, float]:
        self.model.eval()
        with self.accelerator.autocast():
            micros, values = self.task.begin(step)
        every = self.task.term_norms_every
        norms = TermGradients(self.parameters, self.processes) if every and step % every == 0 else None
        self.optimizer.zero_grad()
        own: dict[str, float] = {}  # of this process's micro-batches
        problem: list[str] | None = None
        try:
            for index, micro in self.processes.share(micros):
                torch.manual_seed(step_key(self.seed, step, 2 * index))  # odd keys are left to the task's own draws
                with self.accelerator.autocast():
                    terms, logged = self.task.loss(micro)
                for name, value in [*((name, float(term.detach())) for name, term in terms.items()), *logged.items()]:
                    own[name] = own.get(name, 0.0) + value
                if norms is not None:
                    norms.add(terms)
                self.accelerator.backward(torch.stack([*terms.values()]).sum())
        except NotFinite as error:
            problem = [error.what, str(error)]
        reports = self.processes.gather([own, problem])
        for _, found in reports:
            if found is not None:
                raise NotFinite(*found)
        sums: dict[str, float] = {}
        for logged, _ in reports:
            for name, value in logged.items():
                sums[name] = sums.get(name, 0.0) + value
        values |= sums
        self.processes.sum_gradients_(self.parameters)
        values["grad_norm"] = float(self.accelerator.clip_grad_norm_(self.parameters, self.settings.max_grad_norm))
        if norms is not None:
            lengths = norms.norms()
            values |= {f"grad_norm_{name}": length for name, length in lengths.items()}
            if (pressure := pressure_of(lengths)) is not None:
                values["pressure"] = pressure
        return values

    def _fold_into_average(self) -> None:
        if self.progress.average:
            decay = min(self.settings.average, (1 + self.progress.step) / (10 + self.progress.step))
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    if name in self.progress.average:
                        self.progress.average[name].lerp_(parameter, 1 - decay)

    def _swap_average(self) -> None:
        self.torn = True
        for name, parameter in self.model.named_parameters():
            if name in self.progress.average:
                parameter.data, self.progress.average[name] = self.progress.average[name], parameter.data
        self.torn = False

    # validate, keep the best weights, and note a collapse; `lost` is the reason for one, from the steps
    def _judge(self, lost: str | None) -> dict[str, float]:
        metrics: dict[str, float] = {}
        self.model.eval()
        self._swap_average()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                metrics = self.task.validate()
            _append(self.work / "validation.jsonl", {"step": self.progress.step, **metrics})
            if self.watched is not None:
                with (self.work / "validation.jsonl").open(encoding="utf-8") as file:
                    lost = fallen_in_validation(json.loads(next(file)), metrics, self.watched.cases) or lost
            # with constrained decoding a collapsed policy may still rank well: it is no candidate
            if not lost:
                self.progress.offer(metrics.get(self.task.monitor, math.nan), self.model)
        finally:
            self._swap_average()
        if lost and not self.progress.lost and self.watched is not None:
            self.progress.lost, self.progress.lost_step = lost, self.progress.step
            self.watched.say(self.progress.step, lost)
        return metrics

    def keep(self) -> None:
        if self.writes and not self.torn and self.progress.step and self.progress.step % self.task.stride == 0:
            self._save()

    def _save(self) -> None:
        self.progress.task = self.task.state()
        save(self.work, self.model, self.optimizer.optimizer, self.progress)
        self.saved_at = time.monotonic()

    def finish(self) -> FitResult:
        self._swap_average()
        rows: list[str] = []
        if self.writes:
            save_weights(self.work / "best", self.progress.best_weights, self.progress.best_step, self.files)
            save_weights(self.work / "final", self.model.state_dict(), self.progress.step, self.files)
            rows = (self.work / "validation.jsonl").read_text(encoding="utf-8").splitlines()
        if self.writes and self.progress.lost:
            content = {"step": self.progress.lost_step, "why": self.progress.lost}
            write_file(self.work / "lost.json", json.dumps(content) + "\n")
        best, rows = self.processes.gather([self.progress.best_step, rows])[0]
        return FitResult(best, self.progress.step, [json.loads(row) for row in rows])


def adamw(groups: Sequence[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
    """Return the optimiser of all fits."""
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _cut(path: Path, step: int) -> None:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if row["step"] > step:
            break
        kept.append(line + "\n")
    write_file(path, "".join(kept))
