"""The stages `sft`, the starting policy, trained here or elsewhere, and `train/<arm>`, post-training from it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from adagrpo.config import ArmConfig, read_settings
from adagrpo.config.objective import without_sections
from adagrpo.errors import UserError
from adagrpo.objective.admission import thresholds_sentence
from adagrpo.objective.terms import OBJECTIVES, TERMS
from adagrpo.pipeline.directory import RunDirectory, hash_of, hashes_of, log_event, model_of, path_of
from adagrpo.pipeline.factories import REWARD_WEIGHTS, Models, read_reward_weights
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stage import CHECKPOINTS, Declaration
from adagrpo.pipeline.stages.fitting import DECODING, NOT_FITTED, SHARED, fit_model, measured_fit, measured_once
from adagrpo.pipeline.stages.tokenize import VECTOR_FILE, start_from_vectors
from adagrpo.storage.hashes import hash_json
from adagrpo.trainer import Arm, PostTraining, Supervised
from adagrpo.trainer.pressure import calibrate
from adagrpo.trainer.processes import processes
from adagrpo.trainer.thresholds import GATE, find_thresholds


def train_arm(run: RunDirectory, arm: ArmConfig) -> Declaration:
    """Declare the post-training of an arm from the best sft checkpoint."""
    options = run.config.train
    data, settings = RunData(run), options.fit
    models = Models(data)
    start = run.path("sft", "best")
    reads = [*data.training_files, *data.catalog_files, model_of("sft")]
    if arm.term is not None:
        # the validation log in training has rewards of the ranker of all users
        reads += dict.fromkeys([*models.reward_files, *models.group_reward_files])
    if arm.reads_truth:
        if not data.truth_files:
            data.truth()  # raises if it is missing
        reads += data.truth_files
    pressure = arm.pressure_of(run.config.objective)
    weights = path_of(run, REWARD_WEIGHTS) if arm.term is not None and TERMS[arm.term].in_list_stds else None
    reads += [] if weights is None else [REWARD_WEIGHTS]
    reads += measured_fit(run, f"train/{arm.name}")

    def build(work: Path) -> None:
        for path in models.reward_files:  # nll logs rewards, but is not retrained when the ranker changes
            hash_of(run, path)
        objective = arm.resolved_objective(run.config.objective)
        without_reward = arm.term is None
        if weights is not None and arm.left_to_validation(run.config.objective) is not None:
            without_reward = read_reward_weights(weights).distill == 0  # validation found no use for the reward
        if arm.term == "grpo" and objective.rollout == "beam":
            there, what = math.prod(data.catalog.level_sizes), "all code sequences, of which there are {}"
            if objective.constrained:
                there, what = len(data.catalog.trie.items), "the catalogue, which has {} items"
            if objective.num_generations > there:
                raise UserError(
                    f"arm {arm.name}: a beam of {objective.num_generations} (objective.num_generations) is longer than"
                    f" {what.format(there)}; take at most {there}"
                )
        policy = models.policy(start)
        schedule = replace(models.schedule(settings), rl_split=options.rl_split, rl_split_nll=options.rl_split_nll)
        steps = max(1, round(settings.epochs * schedule.steps_per_epoch))
        validate = measured_once(data, policy, models, settings)
        task: Supervised | PostTraining
        if without_reward:
            steps *= objective.num_iterations  # same budget as arms that reuse each batch
            task = Supervised(policy, data.catalog.codes, schedule, steps=steps, validate=validate)
        else:
            assert arm.term is not None and arm.admits is not None, "an arm without a reward is fitted by Supervised"
            in_scores = objective
            if weights is not None:  # from units of σ to those of the raw reward
                known = read_reward_weights(weights)
                for name in TERMS[arm.term].in_list_stds:
                    given = objective.of_term(arm.term)[name]
                    weight = given if isinstance(given, int | float) else known.distill
                    in_scores = in_scores.with_options(arm.term, **{name: weight / known.within_list_std})
            if in_scores.finds_thresholds(arm.admits):
                drawn_by = in_scores.model_dump(mode="json", exclude={"lambda_", "pressure", "pressure_steps", *TERMS})
                alike = [drawn_by, read_settings(run.config, settings_read, NOT_FITTED), hashes_of(run, reads)]
                known_as, shared = f"thresholds {hash_json(alike)}", SHARED.setdefault(run, {})
                pair, now = find_thresholds(
                    policy,
                    data.catalog,
                    models.group_reward(),
                    schedule,
                    in_scores,
                    work,
                    processes(),
                    known=shared.get(known_as),
                )
                shared[known_as] = pair
                in_scores = in_scores.with_options(GATE, tau=pair["tau"], rho=pair["rho"], admit=None)
                if now:
                    log_event(run, f"train/{arm.name}", thresholds_sentence(pair))
            lambda_ = arm.weight_of(run.config.objective) if pressure is None else 1.0  # pressure is measured at 1
            task = PostTraining(
                policy,
                data.catalog,
                models.group_reward(),
                schedule,
                in_scores,
                Arm(OBJECTIVES[arm.objective].anchored, lambda_, arm.admits, arm.term),
                steps=steps,
                validate=validate,
                term_norms_every=options.gradient_norms_every,
                true_utility=data.true_utility() if arm.reads_truth else None,
                shared_by=processes(),
            )
        if isinstance(task, PostTraining) and pressure is not None:
            settings_now = read_settings(run.config, settings_read, NOT_FITTED)
            alike = [arm.settings(objective) | {"pressure": None}, settings_now, hashes_of(run, reads)]
            known_as = f"norms {hash_json(alike)}"  # arms of equal ones share the norms
            shared = SHARED.setdefault(run, {})
            found, now = calibrate(
                policy,
                task,
                work,
                pressure=pressure,
                steps=objective.pressure_steps,
                seed=run.config.seed,
                shared_by=processes(),
                other=shared.get(known_as),
            )
            shared[known_as] = found
            task.arm = replace(task.arm, lambda_=found.lambda_)
            if now:
                log_event(run, f"train/{arm.name}", found.sentence())
        go_on = not options.stop_lost
        files = policy.checkpoint_files
        fit_model(data, f"train/{arm.name}", policy, task, settings, work, files=files, watch=True, go_on=go_on)

    # the `objective` settings of its term and gate, in the old format so that no arm is retrained
    also: dict[str, Any] = {"arm": without_sections(arm.settings(run.config.objective, defaults=False))}
    settings_read = ["train.fit", "train.rl_split", "train.stop_lost", *DECODING, "seed"]
    if options.rl_split:
        settings_read += ["train.rl_split_nll"]
    if arm.term is not None:
        settings_read += ["train.gradient_norms_every", "ranker.folds", *models.reward_reads]
    return Declaration(
        build,
        reads,
        files=CHECKPOINTS,
        settings=settings_read,
        but=NOT_FITTED,
        also=also,
        version=2,
        together=True,
    )


def sft(run: RunDirectory) -> Declaration:
    """Declare the starting policy: NLL from scratch, or a checkpoint (`policy.lm.trained`)."""
    data, settings = RunData(run), run.config.sft
    models = Models(data)

    def build(work: Path) -> None:
        policy = models.policy()
        items = getattr(policy, "items", None)  # if the policy has item vectors
        if isinstance(items, nn.Embedding) and run.begun is None:
            start_from_vectors(run, items)
        schedule = replace(models.schedule(settings), rl_split=run.config.train.rl_split)
        lm = run.config.policy.lm
        steps = 0 if lm is not None and lm.trained else max(1, round(settings.epochs * schedule.steps_per_epoch))
        validate = models.validator(policy, settings)
        task = Supervised(policy, data.catalog.codes, schedule, steps=steps, validate=validate)
        fit_model(data, "sft", policy, task, settings, work, files=policy.checkpoint_files)

    return Declaration(
        build,
        reads=[
            *(*data.training_files, *data.catalog_files, *data.language_model_files),
            *([VECTOR_FILE] if run.begun is None else []),
            *measured_fit(run, "sft"),
        ],
        files=CHECKPOINTS,
        settings=("sft", *DECODING, "seed", "train.rl_split"),
        but=NOT_FITTED,
        version=4,
        together=True,
    )
