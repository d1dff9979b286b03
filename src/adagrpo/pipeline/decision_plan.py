"""The plan of an experiment between the list that `adagrpo decide` chose and the one that users get today.

A plan that was frozen, or changed by hand, is kept.
"""

from __future__ import annotations

import json
import secrets
import shlex
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta

from adagrpo.config.yaml_text import parse_yaml
from adagrpo.errors import UserError
from adagrpo.experiments.plan import Plan, frozen_path, read_frozen, read_plan
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.storage.hashes import hash_json
from adagrpo.storage.writing import write_file

PLAN = "decision.plan.yaml"
PLAN_MARK = "# as `adagrpo decide` wrote it: "  # precedes the sha256 of the text above
PLAN_TEXT = """\
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
    """Write decision.plan.yaml and return how to serve it; `hit_rates` are HR@10 on test cases, by list.

    None if the control is chosen, or a kept plan is damaged or compares other lists.
    """
    path, said = run.directory / PLAN, ""  # why a plan must be kept
    if path.is_file():
        text, _, digest = path.read_text(encoding="utf-8").rpartition(PLAN_MARK)
        said = "" if hash_json(text) == digest.strip() else "was changed by hand"
    if frozen_path(path).is_file():
        said = "is frozen"
    if chosen == control:
        if not said:
            path.unlink(missing_ok=True)
        return None
    gain = hit_rates[chosen] / hit_rates[control] - 1 if hit_rates[control] else 0.0
    expected, expectation = "", "HR@10 does not gain on test cases, so no effect is expected."
    if gain > 0:
        expected = f", expected: {gain:.4f}"
        expectation = "expected is the relative gain of HR@10 on test cases; clicks may gain less, or nothing."
    start = (today or datetime.now(UTC).date()) + timedelta(days=1)
    text = PLAN_TEXT.format(
        chosen=chosen,
        control=control,
        treated=json.dumps(chosen),
        controlled=json.dumps(control),
        name=json.dumps(f"{run.config.name[:60]}: {chosen}", ensure_ascii=False),
        salt=json.dumps(secrets.token_hex(8)),  # quoted, since it may be all digits
        start=start.isoformat(),
        expectation=expectation,
        expected=expected,
    )
    plan = Plan.model_validate(parse_yaml(text))
    try:
        earlier = read_plan(path) if path.is_file() else None
        if earlier is not None:
            read_frozen(path, earlier)
    except UserError as error:
        run.console.note(f"note: {error}; mend it, or move it away and decide again")
        return None
    if said and earlier is not None:
        if earlier.arms != plan.arms:
            other = f"an experiment on {chosen} and {control} needs another plan; move this one away, and decide again"
            run.console.note(f"note: {run.called / PLAN} {said}, is of other lists and stays as it is: {other}")
            return None
        if earlier.metrics != plan.metrics:
            run.console.note(f"note: {run.called / PLAN} {said}, and stays as it is, with what it expects")
    elif earlier is None or (earlier.arms, earlier.metrics) != (plan.arms, plan.metrics) or earlier.start < start:
        write_file(path, text + PLAN_MARK + hash_json(text) + "\n")
    called = shlex.quote(str(run.called / PLAN))
    return {
        "plan": str(run.called / PLAN),
        "serve": f"adagrpo serve --run {shlex.quote(str(run.called))} --experiment {called}"
        " --exposures exposures --user-key-file user.key",
    }
