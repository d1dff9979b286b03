"""How large a run's models are and what memory a fit takes, said before anything of it is allocated.

Parameters are counted on the meta device, whose tensors have shapes and no memory, so the count is exact. Memory is

    weights + copies + gradients + AdamW's two moments + the larger of (activations + groups, validation)

where the last part is counted in numbers that are alive at once: `n` tokens through the layers, the logits of each
level, and what decoding keeps. Where weights are sharded a process has its share of them, of gradients and of moments,
and whole what is gathered for a pass. It is an estimate, meant to be right within a factor of two.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from adagrpo.config import ArmConfig, Config, FitConfig
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.semantic_ids import Catalog
from adagrpo.trainer.sharding import transformer_layers

__all__ = ["REAL", "FitMemory", "ModelSize", "Shapes", "planned_catalog", "policy_size", "ranker_size"]

REAL = 4  # bytes of a float32
LOGITS = 4  # copies of a row of logits alive in a backward pass: raw, float32, log-softmax, gradient
COLLISION_CODES = 16  # of the level that tells apart items of equal codes, before it is known


class ModelSize(NamedTuple):
    """Parameters of a model."""

    total: int
    trained: int
    weights: int  # bytes

    @classmethod
    def of(cls, model: nn.Module) -> ModelSize:
        """Of a model, wherever its tensors are; what is tied counts once."""
        parts = list(model.parameters())
        trained = sum(part.numel() for part in parts if part.requires_grad)
        weights = sum(part.numel() * part.element_size() for part in parts)
        return cls(sum(part.numel() for part in parts), trained, weights)


@dataclass(frozen=True)
class FitMemory:
    """Bytes that a fit takes in one process beside what that holds anyway."""

    weights: int  # with the best ones so far, and those of the policy that it began with
    optimizer: int  # gradients and moments
    activations: int  # of a micro-batch, with its logits
    groups: int  # rollouts with what decoding keeps of them, keys and values among it, beside the activations
    validation: int  # the beams of a batch of cases
    gathered: int = 0  # of sharded weights those that are whole for a pass, with their gradients
    read: int = 0  # whole weights that are read before a process keeps its part of them

    @property
    def peak(self) -> int:
        """The most at one time."""
        fitting = self.weights + self.optimizer + self.gathered + max(self.activations + self.groups, self.validation)
        return max(self.read, fitting)

    def parts(self) -> dict[str, int]:
        """By name, with the peak."""
        return asdict(self) | {"peak": self.peak}


@dataclass(frozen=True)
class Shapes:
    """What decides how many numbers are alive at once."""

    config: Config
    items: int
    level_sizes: tuple[int, ...]
    longest: int  # interactions of a training history, `max_history` at most
    lm: dict[str, int] | None = None  # hidden, inner, layers, keys, vocabulary of a language model, layered (bytes)

    def policy_fit(
        self, size: ModelSize, settings: FitConfig, users: int, arm: ArmConfig | None = None, *, sharded_by: int = 1
    ) -> FitMemory:
        """Of sft, or of post-training an arm, in one of the processes that a language model is sharded by."""
        batch = min(settings.batch_size, users)
        copies, loaded = 2 + (settings.average > 0), 1
        groups = 0
        if arm is not None and arm.term is not None:
            objective = arm.resolved_objective(self.config.objective)
            copies, loaded = copies + 1, loaded + 1  # the policy that it started from
            samples = batch * (self.longest if objective.rl_positions == "all" else 1)
            groups = max(  # drawn for a whole step at once, then scored with a gradient
                self._decoding(samples * settings.accumulation, objective.num_generations, gradient=False),
                self._decoding(samples, objective.num_generations, gradient=True),
            )
        evaluation = self.config.evaluation
        width = evaluation.beam_width + (self.config.max_history if evaluation.mask_history else 0)
        memory = FitMemory(
            weights=copies * size.weights,
            optimizer=3 * REAL * size.trained,
            activations=self._reading(batch, gradient=True) + self._logits(batch * self.longest),
            groups=groups,
            validation=self._decoding(evaluation.batch_size, width, gradient=False),
        )
        if self.lm is None or sharded_by == 1:
            return memory
        layers = self.lm["layered"]
        whole = size.weights - layers + 2 * layers // self.lm["layers"]  # the layer at work, and the next one
        return replace(
            memory,
            weights=-(-memory.weights // sharded_by),
            optimizer=-(-memory.optimizer // sharded_by),
            gathered=2 * whole,
            read=loaded * size.weights,
        )

    def ranker_fit(self, size: ModelSize, users: int, loss: str) -> FitMemory:
        """Of the sequential ranker."""
        options = self.config.ranker
        settings = options.fit
        tokens = min(settings.batch_size, users) * self.longest
        scored = {"cross_entropy": self.items, "sampled": options.negatives}.get(loss, options.negatives + 1)
        layers = REAL * tokens * options.layers * (24 * options.width + 4 * options.heads * self.longest)
        cases = self.config.evaluation.batch_size
        return FitMemory(
            weights=(2 + (settings.average > 0)) * size.weights,
            optimizer=3 * REAL * size.trained,
            activations=layers + LOGITS * REAL * tokens * scored,
            groups=0,
            validation=2 * REAL * cases * self.items,
        )

    def _reading(self, histories: int, *, gradient: bool) -> int:
        """Histories through the layers of the policy."""
        options = self.config.policy
        if self.lm is None:
            tokens = histories * self.longest
            a_token = 24 * options.width + 4 * options.heads * self.longest
            return REAL * tokens * (a_token * (options.layers if gradient else 1))
        tokens = histories * self.longest * len(self.level_sizes)
        a_layer = 8 * self.lm["hidden"] + 4 * self.lm["inner"] + 2 * self.lm["keys"]
        kept = self.lm["layers"] if gradient and not self._recomputed else 1
        boundaries = self.lm["layers"] * self.lm["hidden"] if gradient else self.lm["layers"] * 2 * self.lm["keys"]
        return REAL * tokens * (a_layer * kept + boundaries)

    @property
    def _recomputed(self) -> bool:
        lm = self.config.policy.lm
        return lm is not None and lm.gradient_checkpointing

    def _logits(self, samples: int) -> int:
        """What the codes of samples are scored by, with its gradient."""
        options = self.config.policy
        if self.lm is not None:  # every level reads the whole vocabulary, to know what is no code of it
            return LOGITS * REAL * samples * len(self.level_sizes) * self.lm["vocabulary"]
        a_level = 6 * options.width + 2 * options.decoder_hidden
        numbers = LOGITS * sum(self.level_sizes) + len(self.level_sizes) * a_level
        if options.kind == "hybrid":
            numbers += LOGITS * (options.item_negatives or self.items)
        return REAL * samples * numbers

    def _decoding(self, samples: int, width: int, *, gradient: bool) -> int:
        """Hypotheses of samples, and their scores."""
        hypotheses = samples * width
        read = self._reading(samples, gradient=gradient)
        if self.lm is not None:
            new = hypotheses * len(self.level_sizes) * self.lm["layers"] * 2 * self.lm["keys"]
            vocabulary = self.lm["vocabulary"] * (len(self.level_sizes) if gradient else 1)
            return read + REAL * (new + LOGITS * hypotheses * vocabulary)
        options = self.config.policy
        a_level = LOGITS * max(self.level_sizes) + 6 * options.width + 2 * options.decoder_hidden
        total = read + REAL * hypotheses * a_level * (len(self.level_sizes) if gradient else 1)
        if options.kind == "hybrid":
            total += LOGITS * REAL * samples * self.items
        return total


def planned_catalog(data: RunData) -> Catalog:
    """The Semantic IDs of a run, or where there are none yet a catalogue of the sizes that its recipe asks for."""
    if all(path.is_file() for path in data.catalog_files):
        return Catalog.read(data.catalog_files[0])
    options, items = data.config.tokenizer, data.num_items
    sizes = (options.codes,) * options.levels
    if options.collisions == "level" or np.prod(np.array(sizes, dtype=float)) < items:
        sizes = (*sizes, max(COLLISION_CODES, -(-items // int(np.prod(sizes)))))
    rest, columns = np.arange(items), []
    for size in reversed(sizes):
        rest, code = np.divmod(rest, size)
        columns.append(code)
    return Catalog.from_codes(np.stack(columns[::-1], axis=1), sizes)


class _Unallocated(Models):
    """Makes models on the meta device."""

    def __init__(self, data: RunData, catalog: Catalog) -> None:
        bare = RunData(data.run)
        bare.__dict__ |= {name: value for name, value in vars(data).items() if name not in ("catalog", "device")}
        bare.device = torch.device("meta")
        bare.__dict__["catalog"] = catalog.to(bare.device)
        super().__init__(bare)


def policy_size(data: RunData, catalog: Catalog) -> tuple[ModelSize, dict[str, int] | None]:
    """The parameters of a run's policy, and what decides the memory of a language model."""
    models = _Unallocated(data, catalog.with_outside() if data.config.policy.kind == "causal_lm" else catalog)
    with torch.device("meta"):
        if data.config.policy.kind != "causal_lm":
            return ModelSize.of(models.policy()), None
        lm = data.config.policy.lm
        if lm is not None and lm.tokens:  # no tokens are added, and which of them are codes changes no size
            from adagrpo.policies.language_model import embedded_tokens, load_folder

            model = load_folder(data.run.data / str(lm.checkpoint), seed=data.config.seed, weights=False)
            tokens = embedded_tokens(model)
        else:
            model, vocabulary, _ = models.language_model(trained=True)
            tokens = vocabulary.end
    config = model.config
    heads = getattr(config, "num_attention_heads", 1)
    hidden = int(config.hidden_size)
    head = getattr(config, "head_dim", None) or hidden // heads
    return ModelSize.of(model), {
        "hidden": hidden,
        "inner": int(getattr(config, "intermediate_size", None) or 4 * hidden),
        "layers": int(config.num_hidden_layers),
        "keys": int(head) * int(getattr(config, "num_key_value_heads", None) or heads),
        "vocabulary": tokens,
        "layered": sum(ModelSize.of(layer).weights for layer in transformer_layers(model)),
    }


def ranker_size(data: RunData) -> ModelSize:
    """The parameters of a run's ranker."""
    models = _Unallocated(data, Catalog.from_codes(np.zeros((1, 1), dtype=np.int64)))
    with torch.device("meta"):
        return ModelSize.of(models.ranker())
