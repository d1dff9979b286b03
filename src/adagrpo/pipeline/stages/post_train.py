"""The stages `train/<arm>`: post-training, each arm from the starting policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from adagrpo.config import ArmConfig, ObjectiveConfig
from adagrpo.objective.terms import OBJECTIVES
from adagrpo.pipeline.models import Workbench
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.stages.choose_weight import chosen_weight, teacher_weight
from adagrpo.pipeline.stages.fitting import fit_config, fit_model, policy_config
from adagrpo.trainer import Arm, PostTraining, Supervised

__all__ = ["fit_arm"]


def fit_arm(run: Run, arm: ArmConfig) -> None:
    """Post-train one arm from the best sft checkpoint."""
    bench, options, objective = Workbench(run), run.config.train, arm.seen_by(run.config.objective)
    settings = options.fit
    start = run.path("sft", "best")
    inputs = [*bench.training_files, *bench.catalog_files, start / "model.safetensors"]
    for path in [*inputs, *bench.reward_files]:
        run.hash_input(path)  # nll reports rewards too, but is not trained again when the ranker changes
    if arm.term is not None:
        # the log of validation while training holds rewards by the ranker of all users
        inputs += dict.fromkeys([*bench.reward_files, *bench.judge_files])
    if arm.gate == "oracle":
        bench.truth()  # or say at once that there is none
        inputs += bench.truth_files
    without_reward, chosen = arm.term is None, arm.left_to_validation(run.config.objective)
    if arm.term is not None and chosen is not None:
        inputs.append(teacher_weight(run))
        weight = chosen_weight(inputs[-1])
        objective = objective.with_option(arm.term, chosen, weight)
        without_reward = weight == 0  # validation found nothing in the reward to teach

    def build(work: Path) -> None:
        policy = bench.policy(start)
        schedule = replace(bench.schedule(settings), rl_split=options.rl_split, rl_split_nll=options.rl_split_nll)
        steps = max(1, round(settings.epochs * schedule.steps_per_epoch))
        validate = bench.validator(policy, settings, bench.reward())
        task: Supervised | PostTraining
        if without_reward:
            steps *= objective.num_iterations  # the same budget as the arms that use each batch that often
            task = Supervised(policy, bench.catalog.codes, schedule, steps=steps, validate=validate)
        else:
            task = PostTraining(
                policy,
                bench.catalog,
                bench.judge(),
                schedule,
                objective,
                _trained_by(arm, run.config.objective),
                steps=steps,
                validate=validate,
                term_norms_every=options.gradient_norms_every,
                true_utility=bench.true_utility() if arm.gate == "oracle" else None,
            )
        fit_model(bench, f"train/{arm.name}", policy, task, settings, work)

    config = _fingerprint(bench, arm)
    run.stage(f"train/{arm.name}", config=config, inputs=inputs, build=build, together=True)


def _fingerprint(bench: Workbench, arm: ArmConfig) -> list[object]:
    """What decides an arm beside its files; what is as it would be by default is left out, so that a new option does
    not train anew what was trained without it."""
    options, config = bench.config.train, bench.config
    found: list[object] = [fit_config(options.fit), *policy_config(bench.run)]
    found += [arm.settings(config.objective, defaults=False)]
    if options.rl_split:
        found += [{"rl_split": options.rl_split, "nll": options.rl_split_nll}]
    if arm.term is None:
        return found
    found += [options.gradient_norms_every]
    if bench.fold_names:
        found += [{"folds": len(bench.fold_names)}]
    return found + list(bench.reward_config)


def _trained_by(arm: ArmConfig, common: ObjectiveConfig) -> Arm:
    assert arm.term is not None and arm.admits is not None, "an arm without a reward is fitted by Supervised"
    return Arm(OBJECTIVES[arm.objective].anchored, arm.weight_of(common), arm.admits, arm.term)
