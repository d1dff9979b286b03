"""Serving a run's lists over HTTP."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Thread, current_thread, main_thread
from typing import Any, get_args

import torch

from adagrpo.errors import ServiceError, UserError, install
from adagrpo.experiments.live import LiveExperiment
from adagrpo.experiments.plan import moment_of
from adagrpo.exposures.exposure_store import LocalExposureLog
from adagrpo.exposures.user_hash import VARIABLE, read_key
from adagrpo.lists import Query, Recommender
from adagrpo.lists.exploration import Exploration
from adagrpo.lists.fallback import CircuitBreaker
from adagrpo.lists.names import RERANK, START, ListName, parse_list, reward_number
from adagrpo.networks import Precision
from adagrpo.pipeline.choose_checkpoint import choose_checkpoint
from adagrpo.pipeline.directory import RunDirectory, refuse_without_order, remake_command, trained_arms
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.list_makers import ListMaker
from adagrpo.pipeline.list_rules import rules_set, set_rules
from adagrpo.pipeline.named_lists import ListOptions, answering, check_served, list_versions, served_list
from adagrpo.pipeline.rewards import check_reward
from adagrpo.pipeline.versions import open_version
from adagrpo.policies.policy import Policy
from adagrpo.rewards.protocol import Reward
from adagrpo.serving.model_manager import ModelManager, Serving
from adagrpo.serving.options import LOCAL, Limits, Options, RequestLog, check_exposed, read_tokens

# By default each small operation of the policy waits 5 ms for a busy event loop. At four times the load this value
# answered 279 lists per second, the default 21; at 70 % of the peak it rejected more, 3,635 against 537. One run each.
SWITCH_SECONDS = 0.0002
# Against DNS rebinding: without a token, another site's page could query a local service under its own host name.
OWN_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Operation:
    """Options of a service."""

    token_file: Path | None = None
    without_token: bool = False  # allow a public address
    user_key_file: Path | None = None
    exposures: Path | None = None  # folder of the exposure log; None writes none
    explore: Exploration | None = None  # sample a share of the lists; needs `exposures`
    limits: Limits = field(default_factory=Limits)
    log_share: float = 0.0  # share of requests that are logged
    rerank_seconds: float = 1.0  # limit of the reward per batch, within the request's deadline
    experiment: Path | None = None  # plan, whose arms are all served; needs `exposures` and a lasting key of users

    def guarded(self, reward: Reward) -> CircuitBreaker:
        """Put a reward behind a circuit breaker that reports to the operator."""
        return CircuitBreaker(reward, budget_seconds=self.rerank_seconds, say=_say)


def recommender(run: RunDirectory, asked: ListOptions) -> tuple[Recommender, dict[str, Any]]:
    """Return the recommender of a list, and facts about it."""
    served, about, maker, note = _recommender(run, asked)
    if note:
        run.console.note(f"note: {note}")
    if maker.asks_reward(parse_list(about["arm"])) and (other := check_reward(Models(RunData(run)))):
        raise UserError(f"{run.called}: {other}; run {remake_command(run, 'reward')}")
    return served, about


def _recommender(run: RunDirectory, asked: ListOptions) -> tuple[Recommender, dict[str, Any], ListMaker, str]:
    """`recommender` without a check, the maker of other lists, and why no refit answers."""
    if asked.precision not in (None, *get_args(Precision)):
        raise UserError(f"precision: {asked.precision!r} is none of {', '.join(get_args(Precision))}")
    found = answering(run, asked)
    name, chosen, version = found.name, found.chosen, found.version
    data = RunData(found.run, version)
    models = Models(data)
    maker = ListMaker(models, asked.exclude_history, asked.precision, asked.reward_weight or None, asked.checkpoint)
    served = maker.recommender(name, chosen.weights)
    set_rules(served, data)
    about = {
        "name": run.config.name,
        "arm": str(name),
        "checkpoint": asked.checkpoint,
        "step": chosen.step,
        "why": chosen.why,
        "refit": found.refit,
        "refresh": found.refresh,
        "items": data.num_items,
        "reward_weight": _weight_said(name, served),
        **({"reward_spread": served.within_list_std} if name.order == RERANK else {}),
        **({"rules": rules} if (rules := rules_set(run)) else {}),
        "arms": ["sft", *trained_arms(run)],
        "catalog_version": version.name,
        "listed": len(data.catalog.trie.items),
        "exclude_history": served.exclude_history,
        "precision": served.precision,
        "versions": list_versions(found.run, name, chosen, asked.checkpoint, asked.reward_weight, version.name),
    }
    return served, about, maker, found.note


def serve(
    run: RunDirectory,
    asked: ListOptions,
    *,
    host: str,
    port: int,
    operation: Operation | None = None,
    ready: Callable[[dict[str, Any]], None],
) -> None:
    """Serve until terminated.

    Args:
        port: 0: any free port.
        ready: called when requests are accepted, with the address and the content of `/health`.
    """
    refuse_without_order(run.config, f"adagrpo ranker --run {run.called}")
    operation = operation or Operation()
    bearers = read_tokens(operation.token_file)
    check_exposed(host, bearers, operation.without_token)
    if operation.explore is not None and operation.exposures is None:
        raise UserError("--explore: needs --exposures, the log that says what was drawn and how probable it was")
    if operation.explore is not None and rules_set(run):
        raise UserError(
            "--explore: a drawn list has known probabilities only in the order in which it was drawn, and rules change"
            " that; serve without --explore, or with --rules FILE of an empty file"
        )
    if operation.experiment is not None:
        if asked.arm is not None or asked.checkpoint != "best":
            option = "--arm" if asked.arm is not None else f"--checkpoint {asked.checkpoint}"
            raise UserError(f"{option}: the plan of --experiment says what is served")
        if operation.exposures is None:
            raise UserError("--experiment: needs --exposures, the log that `adagrpo ab` reads")
        if operation.user_key_file is None and VARIABLE not in os.environ:
            raise UserError(
                f"--experiment: needs --user-key-file or {VARIABLE}, or a restart would assign all users again"
            )
        plan = LiveExperiment(operation.experiment).plan
        if plan.ends <= time.time():
            over = f"note: the window of {operation.experiment} ended on {moment_of(plan.ends)}"
            run.console.note(f"{over}, so everybody gets the list of its control")
    if operation.user_key_file is not None and not operation.user_key_file.exists():
        run.console.note(
            f"note: {operation.user_key_file} is not there and is made; under a new key users are nobody that an"
            " exposure log or an experiment knows"
        )
    user_hash = read_key(operation.user_key_file)
    if operation.exposures is not None:  # refuse before loading
        LocalExposureLog(operation.exposures).close()
    wanted = _Wanted(run, asked)
    try:
        from adagrpo.serving.app import Application
        from adagrpo.serving.arms import ArmManager
        from adagrpo.serving.draining import Server, listen, raise_open_files
    except ImportError as error:
        raise UserError(f"serve: needs fastapi, uvicorn and others; {install('serve')}") from error
    with listen(host, port) as listener:
        load = partial(wanted.load, operation)
        trial: LiveExperiment | None = None
        if operation.experiment is None:
            manager = ModelManager(load(), load, _settle)
        else:
            trial = LiveExperiment(operation.experiment)
            manager = ArmManager(trial, partial(wanted.load_arms, operation, trial), load, _settle)
        raise_open_files()
        options = Options(
            operation.limits,
            bearers,
            RequestLog(operation.log_share),
            user_hash,
            None if operation.exposures is None else LocalExposureLog(operation.exposures),
            operation.explore,
            OWN_NAMES if host in LOCAL and not bearers else ("*",),
            manager.now.recommender.parallel_batches,
        )
        app = Application(manager, options)
        server = Server(app)
        if current_thread() is main_thread():  # only it may set signal handlers
            signal.signal(signal.SIGHUP, lambda *_: Thread(target=app.reload, name="reload", daemon=True).start())
        _settle()
        sys.setswitchinterval(SWITCH_SECONDS)
        if trial is not None and not trial.frozen:
            trial.freeze()
            _say(f"{trial.path} is frozen from here on; another plan needs another name and salt")
        named = f"[{host}]" if ":" in host else host
        stands = {} if trial is None else {"experiment": trial.state()}
        ready({"url": f"http://{named}:{listener.getsockname()[1]}", **manager.now.about, **stands})
        server.run(sockets=[listener])
        if manager.loading:  # exit now; otherwise interpreter shutdown breaks the loading thread
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


@dataclass(frozen=True)
class _Wanted:
    run: RunDirectory
    asked: ListOptions

    def _opened(self) -> RunDirectory:
        return type(self.run).open(self.run.called, self.run.overrides)

    def load(self, operation: Operation, **other: Any) -> Serving:
        return self._load(self._opened(), replace(self.asked, **other), operation)[0]

    def load_arms(self, operation: Operation, trial: LiveExperiment, **other: Any) -> list[Serving]:
        control = trial.plan.arms[trial.plan.control]
        # all arms as measured: a refit of one would compare what they were fitted on
        asked = replace(self.asked, arm=control.serves, checkpoint=control.checkpoint, as_measured=True, **other)
        served, runs = self._opened(), dict[str, RunDirectory]()
        opened: dict[Path | None, RunDirectory] = {None: served}  # each folder once
        for name, arm in trial.plan.arms.items():
            folder = None if arm.run is None else trial.path.parent / arm.run
            try:
                runs[name] = opened[folder] if folder in opened else type(served).open(str(folder))
            except UserError as error:
                raise UserError(f"{trial.path}: arms.{name}.run: {error}") from error
            opened[folder] = runs[name]
        serving, maker = self._load(runs[trial.plan.control], asked, operation)
        serving = replace(serving, about={**serving.about, "why": f"an arm of {trial.path}"})
        others = _load_treatments(trial, runs, serving, maker, asked.catalog, operation.guarded)
        for made in others:
            made.recommender.recommend([Query([0])])
        return [serving, *others]

    def _load(self, run: RunDirectory, asked: ListOptions, operation: Operation) -> tuple[Serving, ListMaker]:
        served, about, maker, note = _recommender(run, asked)
        if note:
            _say(note)
        if served.reward is not None:
            _look_at_reward(Models(RunData(run)))
            served.reward = operation.guarded(served.reward)
        if operation.explore is not None:
            about |= {"explore": operation.explore._asdict()}
        served.recommend([Query([0])])  # warm up before requests, also when models are exchanged
        return Serving(served, about, about["versions"]), maker


def _load_treatments(
    trial: LiveExperiment,
    runs: Mapping[str, RunDirectory],
    control: Serving,
    maker: ListMaker,
    catalog: str,
    guarded: Callable[[Reward], Reward],
) -> list[Serving]:
    """Load the treatments' models in plan order, with the control's catalogue."""
    first, own = runs[trial.plan.control], trial.plan.arms[trial.plan.control]
    held = {id(first): maker}
    rewards: dict[tuple[int, int], Reward] = {}  # by run and by member of a sum
    if control.recommender.reward is not None:
        rewards[id(first), reward_number(parse_list(own.serves).order) or 0] = control.recommender.reward
    known = choose_checkpoint(first, parse_list(own.serves).policy or START, own.checkpoint).weights
    policies: dict[tuple[int, Path], Policy[Any, Any]] = {(id(first), known): control.recommender.policy}
    made, weight = [], maker.reward_weight or 0.0
    for name in trial.plan.treatments:
        run, arm = runs[name], trial.plan.arms[name]
        try:
            called, chosen = served_list(run, arm.serves, arm.checkpoint, weight)
            version = open_version(run, catalog if arm.run is None else "latest")
            check_served(run, chosen, version, called, arm.checkpoint)
            if id(run) not in held:
                held[id(run)] = replace(maker, models=Models(RunData(run, version)), loaded=[])
                _check_catalogue(maker.models, held[id(run)].models)
            own_maker, key = held[id(run)], (id(run), chosen.weights)
            if key not in policies:
                policies[key] = own_maker.models.policy(chosen.weights)
            asked = id(run), reward_number(called.order) or 0
            if own_maker.asks_reward(called) and asked not in rewards:
                _look_at_reward(own_maker.models)
                rewards[asked] = guarded(own_maker.reward_of(called))
            order = replace(own_maker, checkpoint=arm.checkpoint).order(called, rewards.get(asked))
        except UserError as error:
            raise UserError(f"{trial.path}: arms.{name}: {error}") from error
        served = control.recommender.with_policy(policies[key], run.config.max_history, order)
        about = {**control.about, "arm": str(called), "checkpoint": arm.checkpoint, "step": chosen.step}
        about |= {"reward_weight": _weight_said(called, served)}
        versions = list_versions(run, called, chosen, arm.checkpoint, weight, control.versions["catalog"])
        made.append(Serving(served, about | {"versions": versions}, versions))
    return made


def _weight_said(name: ListName, served: Recommender) -> float | None:
    """Return the reward weight of a policy's list; None for other orders."""
    return served.reward_weight if name.order in ("policy", RERANK) else None


def _look_at_reward(models: Models) -> None:
    """Report a failing reward; refuse one whose answers have changed."""
    run = models.run
    try:
        other = check_reward(models)
    except Exception as error:  # user code may raise anything
        said = error if isinstance(error, UserError | ServiceError) else repr(error)
        run.console.note(f"note: the reward failed: {said}; until it answers, lists come without it")
    else:
        if other:
            raise UserError(f"{run.called}: {other}; run {remake_command(run, 'reward')}")


def _check_catalogue(ours: Models, theirs: Models) -> None:
    a, b = ours.data.catalog, theirs.data.catalog
    same = a.level_sizes == b.level_sizes and torch.equal(a.codes, b.codes) and torch.equal(a.listed, b.listed)
    if not same or ours.data.item_ids.to_list() != theirs.data.item_ids.to_list():
        raise UserError(
            f"{theirs.data.run.called} has another catalogue than {ours.data.run.called}; arms that are served "
            "together have the same items, codes and delisted items"
        )


def _say(line: str) -> None:
    sys.stderr.write(f"adagrpo serve: {line}\n")
    sys.stderr.flush()


def _settle() -> None:
    """Free a replaced model and freeze the rest: a full garbage collection would stall requests."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
