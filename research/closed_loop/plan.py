"""The plan of a closed loop: worlds, markets and rounds, one YAML file; `plan.yaml` is one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from adagrpo.config.data import MarketplaceConfig
from adagrpo.config.recipe import Config, load_config
from adagrpo.config.section import Positive, PositiveFloat, Section, Share, read_section
from adagrpo.config.training import OWN_NAME, ArmConfig
from adagrpo.errors import UserError

__all__ = ["CanaryPlan", "LoopPlan", "MarketPlan", "WorldPlan", "read_loop_plan"]

Name = Annotated[str, Field(pattern=f"^{OWN_NAME}$")]


class WorldPlan(Section):
    """A world: its seed, and what it has otherwise than the recipe's `data.marketplace`."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    marketplace: MarketplaceConfig = MarketplaceConfig()


Sign = Literal["reward_up_feedback_down", "feedback_down", "calibration", "concentration"]


class CanaryPlan(Section):
    """Each new policy is served to a share of the users for a round, others for each round, beside the one before.

    Where a sign of `stop_on` is on against the others of the same days, the new policy is dropped, and the next one is
    trained from the one before again. Else all users are served it from the next round on.
    """

    share: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    stop_on: tuple[Sign, ...] = get_args(Sign)


class MarketPlan(Section):
    """A market: the arms that are trained again each round, served to equal shares of the users.

    No arm at all is a market in which the starting policy stays. `explore` is the share of lists that are drawn.
    """

    arms: tuple[ArmConfig, ...] = ()
    explore: Share = 0.0
    checkpoint: Literal["best", "final"] = "final"
    canary: CanaryPlan | None = None

    @model_validator(mode="after")
    def _distinct(self) -> MarketPlan:
        names = [arm.name for arm in self.arms]
        if self.canary is not None and len(names) > 1:
            raise ValueError(f"canary: is of one arm, this market has {len(names)}")
        if len(set(names)) < len(names):
            raise ValueError(f"two arms have the same name: {', '.join(names)}")
        return self


class LoopPlan(Section):
    """All that is decided before the first round.

    In round 0 every market serves the starting policy for `start_days`. Each later round fits the ranker on all that
    was logged, trains the arms, and serves for `days`. A user comes on a day with probability `visits`. Of the items
    that the world holds back (`later_share`), an equal part is listed before each round. `temperature` is that of drawn
    lists. `probes` cases and users are what is measured beside the users who come. In a `stationary` plan users are on
    each day what they were on the first: nothing changes but what chance brings.
    """

    name: Name
    recipe: str
    worlds: Annotated[dict[Name, WorldPlan], Field(min_length=1)]
    markets: Annotated[dict[Name, MarketPlan], Field(min_length=1)]
    rounds: Positive
    days: Positive = 3
    start_days: Positive = 6
    visits: Annotated[float, Field(gt=0, le=1)] = 0.3
    list_length: Positive = 10
    temperature: PositiveFloat = 1.0
    probes: Positive = 200
    stationary: bool = False


def read_loop_plan(path: Path) -> tuple[LoopPlan, Config]:
    """A plan, and the recipe that it names, which lies beside it.

    Raises:
        UserError: no such file, or it is not what it should be.
    """
    plan = read_section(path, LoopPlan, "plan")
    config = load_config(path.parent / plan.recipe)
    if config.data.marketplace is None:
        raise UserError(f"{path}: recipe: {plan.recipe} has no data.marketplace, and the loop is closed in one")
    return plan, config
