"""The plan of the experiment that a decision asks for: the chosen list against the one that users get today.

What offline cases say is there: the relative gain of HR@10 on test cases, as the effect that is expected of clicks.
What they do not say is left out, above all click rates; `adagrpo ab PLAN --power --exposures LOG` takes them from a
log. A plan of the same lists that is there, or that is frozen, is left as it is: somebody may have changed it.
"""

from __future__ import annotations

import json
import secrets
import shlex
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta

from adagrpo.config.yaml_text import parse_yaml
from adagrpo.experiments.plan import Plan, frozen_path, read_plan
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.storage.writing import write_file

PLAN = "decision.plan.yaml"
TEXT = """\
# `{chosen}` against `{control}`, by `adagrpo decide`. Change what you know better, then `adagrpo ab PLAN --freeze`.
name: {name}
arms:
  control: {{serves: {controlled}}}
  treatment: {{serves: {treated}}}
control: control
salt: {salt}
start: {start}
days: 14
metrics:
  # {expectation}
  # mean and deviation of a user's clicks are not known from offline cases: give them here, or for
  # `adagrpo ab PLAN --power` an exposure log with days before the start.
  clicks: {{sum: click{expected}}}
guardrails:
  errors: {{sum: errors, per: requests, margin: 0.05}}
  slow: {{sum: slow, per: answers, margin: 0.05}}
  degraded: {{sum: degraded, per: answers, margin: 0.05}}
"""


def plan_experiment(
    run: RunDirectory, chosen: str, control: str, hit_rates: Mapping[str, float], today: date | None = None
) -> dict[str, str] | None:
    """Write decision.plan.yaml, and say how it is served; None where the control is chosen.

    Args:
        run: whose lists they are.
        chosen: the list to serve.
        control: the list that users get today.
        hit_rates: HR@10 on test cases, by list.
        today: in UTC; the experiment starts on the day after.
    """
    path = run.directory / PLAN
    frozen = frozen_path(path).is_file()
    if chosen == control:
        if not frozen:
            path.unlink(missing_ok=True)
        return None
    gain = hit_rates[chosen] / hit_rates[control] - 1 if hit_rates[control] else 0.0
    said = "is the relative gain of HR@10 on test cases; clicks may gain less, or nothing"
    start = (today or datetime.now(UTC).date()) + timedelta(days=1)
    text = TEXT.format(
        chosen=chosen,
        control=control,
        treated=json.dumps(chosen),
        controlled=json.dumps(control),
        name=json.dumps(f"{run.config.name[:60]}: {chosen}", ensure_ascii=False),
        salt=json.dumps(secrets.token_hex(8)),  # a text, also where it has digits alone
        start=start.isoformat(),
        expectation=f"expected {said}." if gain > 0 else "HR@10 does not gain on test cases, so no effect is expected.",
        expected=f", expected: {gain:.4f}" if gain > 0 else "",
    )
    plan = Plan.model_validate(parse_yaml(text))
    if not (path.is_file() and (frozen or read_plan(path).arms == plan.arms)):
        write_file(path, text)
    elif frozen and read_plan(path).arms != plan.arms:
        run.console.note(f"{path} is frozen, of other lists, and left as it is")
    called = shlex.quote(str(run.called / PLAN))
    return {
        "plan": str(run.called / PLAN),
        "serve": f"adagrpo serve --run {shlex.quote(str(run.called))} --experiment {called}"
        " --exposures exposures --user-key-file user.key",
    }
