"""Model card of an exported policy, after https://huggingface.co/docs/hub/model-cards.

The licence is left to the publisher.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from adagrpo import __version__
from adagrpo.errors import UserError
from adagrpo.metrics import ReportPart, metric_names
from adagrpo.objective import GATES
from adagrpo.pipeline.choose_checkpoint import Chosen, evaluation_of, of_these_weights
from adagrpo.pipeline.compare_arms import weight_used
from adagrpo.pipeline.description import config_hash
from adagrpo.pipeline.directory import RunDirectory, find_content, hash_of, kept
from adagrpo.pipeline.json_files import read_json
from adagrpo.pipeline.named_lists import decision_now
from adagrpo.pipeline.stages.diagnose import is_diagnosed
from adagrpo.report.decision import list_advice
from adagrpo.report.run_tables import own_interval
from adagrpo.report.summary import measured_over
from adagrpo.report.tables import START, Table, format_metric, metric_label, to_markdown

LICENCE = "# license: name yours here before you publish this folder; adagrpo does not choose one\n"


def model_card(run: RunDirectory, chosen: Chosen, checkpoint: str, *, parameters: int, usage: str) -> str:
    """Return the text of README.md."""
    measured = _measured(run, chosen, checkpoint)
    results = _results(run, chosen, checkpoint, measured.get("test") or {})
    parts = [
        f"# {run.config.name}: {chosen.arm}, {checkpoint} checkpoint",
        usage,
        f"## Data\n\n{_data(run)}",
        f"## Model\n\n{_model(run, parameters)}",
        f"## Training\n\n{_training(run, chosen, checkpoint)}",
        f"## Results\n\n{_results_text(run, results, measured.get('eligible'))}",
        f"## Should the reward have been used?\n\n{_verdict(run)}",
        f"## Limits\n\n{_limits(run)}",
        f"## How it was made\n\n{_made(run)}",
    ]
    of_part = f", {measured['eligible']['items']:,} of its items" if "eligible" in measured else ""
    return _metadata(run, chosen, checkpoint, results, of_part) + "\n" + "\n\n".join(parts) + "\n"


def _metadata(
    run: RunDirectory, chosen: Chosen, checkpoint: str, results: Mapping[str, Mapping[str, float]], of_part: str
) -> str:
    content: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["recommendation", "generative-retrieval", "semantic-ids", "adagrpo"],
    }
    if results:
        entry = {
            "task": {"type": "recommendation", "name": "next-item recommendation"},
            "dataset": {"name": f"{run.config.name}{of_part}", "type": run.config.name},
            "metrics": [
                {"type": name, "name": f"{metric_label(name)} (test)", "value": round(value["mean"], 6)}
                for name, value in results.items()
            ],
        }
        content["model-index"] = [{"name": f"{run.config.name}-{chosen.arm}-{checkpoint}", "results": [entry]}]
    return f"---\n{LICENCE}{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---\n"


def _data(run: RunDirectory) -> str:
    summary = find_content(run, "prepare", "summary.json") or {}
    names = ("users", "items", "interactions", "training_interactions", "validation_cases", "test_cases")
    rows = tuple((name.replace("_", " "), f"{summary[name]:,}") for name in names if name in summary)
    return to_markdown(Table.of(("data", "number"), rows))


def _model(run: RunDirectory, parameters: int) -> str:
    policy, tokenizer = run.config.policy, run.config.tokenizer
    audit = find_content(run, "tokenize", "audit.json") or {}
    body = "a model that was given" if policy.lm and policy.lm.checkpoint else "a model from a configuration"
    lora = f", adapters of rank {policy.lm.lora_rank} merged into it" if policy.lm and policy.lm.lora_rank else ""
    fitted = f"Semantic IDs by {tokenizer.quantizer}, of {' and '.join(tokenizer.vectors)} vectors"
    rows = [
        ("policy", f"{policy.kind}, {body}{lora}"),
        ("parameters", f"{parameters:,}"),
        ("weights", "float32"),
        ("history", f"the last {run.config.max_history:,} items"),
        ("tokenizer", f"published Semantic IDs ({tokenizer.published.column})" if tokenizer.published else fitted),
    ]
    if levels := audit.get("per_level"):
        rows.append(("codes by level", " × ".join(f"{level['codes_used']} of {level['size']}" for level in levels)))
        rows.append(("items that shared their codes before", f"{100 * audit['collision_rate']:.2f} %"))
        rows.append(("code sequences that name an item", f"{100 * audit['density']:.3g} %"))
    return to_markdown(Table.of(("part", "what"), rows, 2))


def _training(run: RunDirectory, chosen: Chosen, checkpoint: str) -> str:
    rows = [("arm", chosen.arm), ("checkpoint", f"{checkpoint}, step {chosen.step}")]
    if chosen.arm == START:
        rows.append(("objective", "cross-entropy of the logged items; no reward"))
    else:
        arm = next(arm for arm in run.config.train.arms if arm.name == chosen.arm)
        objective = arm.objective if arm.term is None else f"{arm.objective}, gate {arm.admits}"
        rows.append(("objective", objective))
        if arm.term is not None:
            options = arm.resolved_objective(run.config.objective)
            rows.append(("lambda", f"{weight_used(run, arm)}"))
            if (pressure := arm.pressure_of(run.config.objective)) is not None:
                rows.append(("pressure", f"{pressure:g}, from which lambda was computed"))
            if arm.admits is not None and GATES[arm.admits].reads_tests:
                thresholds = options.of_gate(options.tested_by(arm.admits)).items()
                told = (f"{name} {value}" for name, value in thresholds if value is not None)
                rows.append(("thresholds", ", ".join(told)))
            rows.append(("reward", run.config.reward.kind))
    return to_markdown(Table.of(("setting", "value"), rows, 2))


def _results(
    run: RunDirectory, chosen: Chosen, checkpoint: str, means: Mapping[str, float]
) -> dict[str, Mapping[str, float]]:
    """Return metrics on test cases; empty if other weights were evaluated."""
    paired = find_content(run, "report", "paired", "paired.json") if means else None
    if paired is not None:
        made_from = kept(run, "report/paired")
        lists = run.find(*evaluation_of(chosen.arm, checkpoint), "predictions.parquet")
        if made_from is not None and (lists is None or hash_of(run, lists) not in made_from.hashes.values()):
            paired = None  # of an earlier evaluation
    known = own_interval(paired, chosen.arm, "start" if chosen.arm == START else checkpoint) if paired else {}
    names = [name for name in metric_names(ReportPart.RESULTS) if means.get(name) is not None]
    return {name: known.get(name) or {"mean": means[name]} for name in names}


def _measured(run: RunDirectory, chosen: Chosen, checkpoint: str) -> dict[str, Any]:
    path = run.find(*evaluation_of(chosen.arm, checkpoint), "metrics.json")
    if path is None or (chosen.arm == START and checkpoint != "best"):
        return {}
    stage = "/".join(evaluation_of(chosen.arm, checkpoint))
    return read_json(path) if of_these_weights(run, stage, chosen.arm, checkpoint) else {}


def _results_text(
    run: RunDirectory, results: Mapping[str, Mapping[str, float]], eligible: Mapping[str, Any] | None
) -> str:
    if not results:
        return "Not evaluated: `adagrpo evaluate` had not measured this checkpoint when this folder was written."
    rows = []
    for name, value in results.items():
        ends = [format_metric(name, value[end]) for end in ("low", "high") if end in value]
        rows.append((metric_label(name), format_metric(name, value["mean"]), " to ".join(ends) or "not known"))
    table = to_markdown(Table.of(("metric, test cases", "mean", "95 % interval"), rows))
    made = (find_content(run, "metrics.json") or {}).get("config_hash", config_hash(run.config))
    other = "" if made == config_hash(run.config) else f" They were measured under another configuration, `{made}`."
    masked = "left out of" if run.config.evaluation.exclude_history else "kept in"
    return (
        f"Measured over {measured_over(eligible)} by beam search of width {run.config.evaluation.beam_width};"
        f" items of the history are {masked} the lists. The intervals are a bootstrap over the users, of one"
        f" seed.{other}\n\n{table}"
    )


def _verdict(run: RunDirectory) -> str:
    content = find_content(run, "diagnose", "diagnose.json")
    if content is None:
        return "Not asked: `adagrpo diagnose` had not been carried out when this folder was written."
    try:
        of_these = is_diagnosed(run, content)
    except UserError:  # a file that the reward is read from is gone
        of_these = False
    if not of_these:
        return "Not known: what `adagrpo diagnose` said is of another policy or reward than this run has now."
    verdict = content["verdict"]
    decided = decision_now(run)
    advice = [] if decided is None else list_advice(content, decided, run.called)
    told = " ".join([*verdict["sentences"][:2], *advice])
    return f"`adagrpo diagnose` said **{verdict['decision'].replace('_', ' ')}**. {told}"


def _limits(run: RunDirectory) -> str:
    simulated = "- The data are simulated; the numbers say nothing about a real shop.\n"
    return (
        f"{simulated if run.config.data.marketplace else ''}"
        "- It knows the items of its catalogue and no other; a new item needs codes, and training that has seen them.\n"
        "- It learned from logs, so it repeats what was shown and bought there; a group that is rare in them is served"
        " worse.\n"
        "- Offline metrics reward the item that was logged next. What users would make of others they do not say.\n"
        "- Unconstrained generation can write invalid Semantic IDs; use the prefix function of this folder."
    )


def _made(run: RunDirectory) -> str:
    return (
        f"Made by adagrpo {__version__}, seed {run.config.seed}, configuration `{config_hash(run.config)}`.\n"
        "The configuration itself is in run.yaml of the run. Before you publish, add a licence and a contact here."
    )
