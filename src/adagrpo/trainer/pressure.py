"""Calibration of λ by pressure, the relative gradient length of the reward term.

    ratio = rms_k ‖∇ term_k‖ / rms_k ‖∇ anchor_k‖          the steps k = 1 .. K at the starting policy, λ = 1
    λ     = pressure / ratio

The anchor is `Policy.supervised_loss`. A step without admitted groups counts as 0. If the policy trains on another loss
than -(1/L) Σ_l log π, the gradient of that is measured too, over a few steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from adagrpo.errors import NotFinite, UserError
from adagrpo.networks import mixed_precision
from adagrpo.storage.writing import write_file
from adagrpo.trainer.batches import step_key
from adagrpo.trainer.post_training import PostTraining
from adagrpo.trainer.processes import Processes

ANCHOR, STATED = "nll", "stated_nll"
FILE = "pressure.json"
STATED_STEPS = 4


def pressure_of(norms: Mapping[str, float]) -> float | None:
    """Return the ratio of reward term to anchor in a step; None without an anchor.

    >>> pressure_of({"nll": 2.0, "grpo": 0.5}), pressure_of({"nll": 2.0}), pressure_of({"grpo": 0.5})
    (0.25, 0.0, None)
    """
    if not norms.get(ANCHOR):
        return None
    return math.hypot(*(norm for name, norm in norms.items() if name not in (ANCHOR, STATED))) / norms[ANCHOR]


def mean_pressure(rows: Iterable[Mapping[str, float]]) -> float | None:
    """Return the ratio over `rows` of `steps.jsonl`, as in a calibration; None without measurements."""
    measured = [(row["pressure"], row[f"grad_norm_{ANCHOR}"]) for row in rows if "pressure" in row]
    if not measured:
        return None
    anchors = _root_mean_square([anchor for _, anchor in measured])
    return _root_mean_square([pressure * anchor for pressure, anchor in measured]) / anchors


class TermGradients:
    """Gradient of each loss term, summed over the micro-batches of a step and, in `norms`, over processes."""

    def __init__(self, parameters: Sequence[nn.Parameter], shared_by: Processes) -> None:
        self.parameters, self.processes = parameters, shared_by
        self.sums: dict[str, list[Tensor]] = {}

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add the gradients of a micro-batch, retaining its graph."""
        for name, term in terms.items():
            gradients = torch.autograd.grad(term, self.parameters, retain_graph=True, allow_unused=True)
            sums = self.sums.setdefault(name, [torch.zeros_like(p) for p in self.parameters])
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    total += gradient

    def norms(self) -> dict[str, float]:
        """Return gradient norms; processes may lack terms."""
        names = dict.fromkeys(name for process_names in self.processes.gather([*self.sums]) for name in process_names)
        for name in names:
            self.sums.setdefault(name, [torch.zeros_like(p) for p in self.parameters])
            self.processes.sum_(self.sums[name])
        return {name: float(torch.nn.utils.get_total_norm(self.sums[name])) for name in names}


@dataclass(frozen=True)
class Calibrated:
    """A calibrated λ and its measurements."""

    pressure: float
    lambda_: float
    ratio: float  # at λ 1
    term_norm: float  # at λ 1, root of the mean square over the steps
    anchor_norm: float
    steps: int
    term_norms: tuple[float, ...]  # of each step
    anchor_norms: tuple[float, ...]
    stated_norms: tuple[float, ...] = ()  # of the first steps, where the policy trains on something else

    @property
    def anchor_over_stated(self) -> float | None:
        """Gradient norm of the anchor over that of -(1/L) Σ log π; None if they are the same."""
        stated = _root_mean_square(self.stated_norms)
        return _root_mean_square(self.anchor_norms[: len(self.stated_norms)]) / stated if stated else None

    def sentence(self) -> str:
        """Describe the calibration."""
        text = (
            f"pressure {self.pressure:g} is lambda {self.lambda_:g}: at lambda 1 the gradient of the reward term is "
            f"{self.ratio:.3g} of the anchor's over {self.steps} steps"
        )
        times = self.anchor_over_stated
        return text if times is None else f"{text}; the anchor's is {times:.3g} times that of -(1/L) log pi"


def solve(
    pressure: float, term_norms: Sequence[float], anchor_norms: Sequence[float], stated_norms: Sequence[float] = ()
) -> Calibrated:
    """Return the λ that gives the pressure, to four significant digits, from norms (K,) at λ 1.

    UserError if a norm is not finite, or the term or the anchor has no gradient.
    """
    term, anchor = _root_mean_square(term_norms), _root_mean_square(anchor_norms)
    asked, steps = f"objective.pressure {pressure:g}", f"{len(term_norms)} steps at the starting policy"
    if not (math.isfinite(term) and math.isfinite(anchor)):
        raise UserError(f"{asked}: a gradient is not finite in {steps}; check the reward, or give the arm a lambda")
    if not term or not anchor:
        name = "the anchor" if not anchor else "the reward term"
        raise UserError(
            f"{asked}: {name} has no gradient in {steps} (groups admitted in {sum(norm > 0 for norm in term_norms)} "
            f"of them), so no lambda gives that pressure; raise objective.pressure_steps, loosen the gate, or give the "
            f"arm a lambda"
        )
    weight = float(f"{pressure * anchor / term:.4g}")
    each = (tuple(map(float, norms)) for norms in (term_norms, anchor_norms, stated_norms))
    return Calibrated(pressure, weight, term / anchor, term, anchor, len(term_norms), *each)


def calibrate(
    model: nn.Module,
    task: PostTraining,  # at λ 1, before its first step; its state is restored
    work: Path,
    *,
    pressure: float,
    steps: int,
    seed: int,
    shared_by: Processes,
    other: Calibrated | None = None,  # the arm at another pressure, whose norms are reused; the same in all processes
) -> tuple[Calibrated, bool]:
    """Return λ, measured or from `pressure.json`, and whether it is new; errors as `solve`."""
    path = work / FILE
    known = shared_by.broadcast(path.read_text(encoding="utf-8") if path.is_file() else "")
    if known:
        content = json.loads(known)
        lists = {name: tuple(content[name]) for name in ("term_norms", "anchor_norms", "stated_norms")}
        return Calibrated(**content | lists), False
    if other is None:
        found = solve(pressure, *_measured(model, task, pressure, steps, seed, shared_by))
    else:
        found = solve(pressure, other.term_norms, other.anchor_norms, other.stated_norms)
    if shared_by.is_main_process:
        work.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(asdict(found), indent=1) + "\n")
    return found, True


def _measured(
    model: nn.Module, task: PostTraining, pressure: float, steps: int, seed: int, shared_by: Processes
) -> tuple[list[float], list[float], list[float]]:
    before, parameters = task.state(), [p for p in model.parameters() if p.requires_grad]
    norms = list[dict[str, float]]()
    try:
        for step in range(0, steps * task.stride, task.stride):
            gradients = TermGradients(parameters, shared_by)
            model.eval()
            with mixed_precision(model):
                micros, _ = task.begin(step)
            problem: list[str] | None = None
            try:
                for index, micro in shared_by.share(micros):
                    torch.manual_seed(step_key(seed, step, 2 * index))
                    with mixed_precision(model):
                        terms, _ = task.loss(micro)
                    gradients.add(terms)
                    del terms
                    if step < STATED_STEPS * task.stride:
                        torch.manual_seed(step_key(seed, step, 2 * index))  # the same dropout
                        parts = iter(task.stated_anchor(micro))
                        while True:
                            with mixed_precision(model):
                                part = next(parts, None)
                            if part is None:
                                break
                            gradients.add({STATED: part})
            except NotFinite as error:
                problem = [error.what, str(error)]
            for found in shared_by.gather(problem):
                if found is not None:
                    raise NotFinite(*found)
            norms.append(gradients.norms())
    except NotFinite as error:
        raise UserError(f"objective.pressure {pressure:g}: at the starting policy, {error}") from error
    finally:
        task.load_state(before)
    return (
        [row.get(task.term, 0.0) for row in norms],
        [row.get(ANCHOR, 0.0) for row in norms],
        [row[STATED] for row in norms if STATED in row],
    )


def _root_mean_square(norms: Sequence[float]) -> float:
    return math.sqrt(sum(norm * norm for norm in norms) / len(norms)) if norms else 0.0
