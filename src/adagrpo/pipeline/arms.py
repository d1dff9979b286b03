"""The stages `train/<arm>`: post-training, each arm from the starting policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from adagrpo.config import ArmConfig, ObjectiveConfig
from adagrpo.pipeline.fitting import fit_config, fit_model, needs_order, policy_config
from adagrpo.pipeline.models import Workbench
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.teacher import chosen_weight, teacher_weight
from adagrpo.trainer import Arm, PostTraining, Supervised

__all__ = ["fit_arm"]


def fit_arm(run: Run, arm: ArmConfig) -> None:
    """Post-train one arm from the best sft checkpoint."""
    needs_order(run)
    bench, options, objective = Workbench(run), run.config.train, arm.seen_by(run.config.objective)
    settings = options.fit
    start = run.path("sft", "best")
    inputs = [*bench.training_files, *bench.catalog_files, start / "model.safetensors"]
    for path in [*inputs, *bench.reward_files]:
        run.hash_input(path)  # nll reports rewards too, but is not trained again when the ranker changes
    if arm.objective != "nll":
        # the log of validation while training holds rewards by the ranker of all users
        inputs += dict.fromkeys([*bench.reward_files, *bench.judge_files])
    if arm.gate == "oracle":
        bench.truth()  # or say at once that there is none
        inputs += bench.truth_files
    if arm.gate == "agreement":
        inputs += dict.fromkeys(bench.second_files)
    without_reward = arm.objective == "nll"
    if arm.chooses_weight(run.config.objective):
        inputs.append(teacher_weight(run))
        weight = chosen_weight(inputs[-1])
        objective = objective.model_copy(update={"distill_weight": weight})
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
                _arm(arm, objective.lambda_),
                steps=steps,
                validate=validate,
                term_norms_every=options.gradient_norms_every,
                true_utility=bench.true_utility() if arm.gate == "oracle" else None,
                second=bench.second() if arm.gate == "agreement" else None,
            )
        fit_model(bench, f"train/{arm.name}", policy, task, settings, work)

    config = _fingerprint(bench, arm, objective)
    run.stage(f"train/{arm.name}", config=config, inputs=inputs, build=build, together=True)


def _fingerprint(bench: Workbench, arm: ArmConfig, objective: ObjectiveConfig) -> list[object]:
    """What decides an arm beside its files; what decides nothing in it is left out, so that a new option does not train
    anew what was trained without it."""
    options, second = bench.config.train, bench.config.second_reward
    described = arm.model_dump(mode="json", by_alias=True, exclude={"own_name", "options"})
    config: list[object] = [fit_config(options.fit), *policy_config(bench.run), described]
    if options.rl_split:
        config += [{"rl_split": options.rl_split, "nll": options.rl_split_nll}]
    if arm.objective != "nll":
        without = {"oracle_agreement", "agreement", "distill_weight"}
        off = ("exclude_history", "validity_weight", "target_only", "target_admission", "validity_depth")
        without |= {name for name in off if not getattr(objective, name)}
        config += [objective.model_dump(mode="json", by_alias=True, exclude=without)]
        config += [options.gradient_norms_every]
        if arm.gate == "oracle":
            config += [{"oracle_agreement": objective.oracle_agreement}]
        if arm.gate == "agreement" and second is not None:
            config += [{"agreement": objective.agreement, "second_reward": second.identity()}]
        if arm.objective == "distill":
            config += [{"distill_weight": objective.distill_weight}]
        if bench.fold_names:
            config += [{"folds": len(bench.fold_names)}]
        config += bench.reward_config
    return config


def _arm(arm: ArmConfig, default_lambda: float) -> Arm:
    """What an objective's name means: `grpo` has no NLL, `nll` is no arm with a reward."""
    assert arm.admits is not None, "an arm without a reward is fitted by Supervised"
    term: Literal["grpo", "distill", "best_of_n"] = "grpo"
    if arm.objective in ("distill", "best_of_n"):
        term = arm.objective
    return Arm(arm.objective != "grpo", default_lambda if arm.lambda_ is None else arm.lambda_, arm.admits, term)
