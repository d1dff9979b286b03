"""Export a policy as a Hugging Face folder, with its catalogue, a standalone `semantic_ids.py` and a model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from adagrpo import __version__
from adagrpo.errors import UserError
from adagrpo.metrics import ReportPart, metric_names
from adagrpo.objective import GATES
from adagrpo.pipeline.checks import check
from adagrpo.pipeline.choose_checkpoint import Checkpoint, Chosen, choose_checkpoint, evaluation_of, of_these_weights
from adagrpo.pipeline.compare_arms import weight_used
from adagrpo.pipeline.description import config_hash
from adagrpo.pipeline.directory import RunDirectory, find_content, hash_of, kept, refuse_without_order
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import read_json
from adagrpo.pipeline.named_lists import decision_now
from adagrpo.pipeline.stages.diagnose import is_diagnosed
from adagrpo.pipeline.versions import LATEST, open_version
from adagrpo.policies import prefix_function
from adagrpo.report.decision import list_advice
from adagrpo.report.run_tables import own_interval
from adagrpo.report.summary import measured_over
from adagrpo.report.tables import START, Table, format_metric, metric_label, to_markdown
from adagrpo.storage.writing import atomic_folder
from adagrpo.trainer.thresholds import FILE as THRESHOLDS_FILE


def export(
    run: RunDirectory,
    to: Path,
    arm: str | None = None,
    checkpoint: Checkpoint = "best",
    catalog: str = LATEST,
) -> dict[str, object]:
    """Write a checkpoint as a Hugging Face folder, with merged adapters and float32 weights, and return facts of it.

    Raises:
        UserError: a part is missing or stale, the folder is in use, or `transformers` cannot open the policy.
    """
    refuse_without_order(run.config, f"adagrpo ranker --run {run.called}")
    if to.is_symlink() or (to.exists() and (not to.is_dir() or any(to.iterdir()))):
        raise UserError(f"{to}: is not empty; --to takes a new folder")
    chosen = choose_checkpoint(run, arm, checkpoint)
    version = open_version(run, catalog)
    check(run, "export", [chosen.stage, version.stage])
    weights = chosen.weights
    if run.config.policy.lm is None:
        raise UserError(
            f"export: the policy is '{run.config.policy.kind}', which no other program opens; its weights are "
            f"{weights / 'model.safetensors'}"
        )
    with atomic_folder(to) as work:
        _write(RunData(run, version), chosen, checkpoint, work)
        for path in work.rglob("*"):  # some libraries write owner-only permissions
            path.chmod(work.stat().st_mode & (0o777 if path.is_dir() else 0o666))
    about = {"folder": str(to), "arm": chosen.arm, "checkpoint": checkpoint, "step": chosen.step, "why": chosen.why}
    items = int(version.codes.listed.sum())
    return about | {"items": items, "catalog_version": version.name, "precision": "float32"}


def _write(data: RunData, chosen: Chosen, checkpoint: str, folder: Path) -> None:
    # needs the extra `hf`
    from transformers import GenerationConfig

    from adagrpo.policies.causal_lm import CausalLMPolicy
    from adagrpo.policies.language_model import VOCABULARY_FILE, copy_tokenizer, merged
    from adagrpo.policies.shared_codes import SharedCodesPolicy

    run, options = data.run, data.config.policy.lm
    policy = Models(data).policy(chosen.weights)
    if isinstance(policy, SharedCodesPolicy):
        raise UserError(
            "export: items share Semantic IDs, which a prefix function cannot tell apart; serve them with "
            "`adagrpo serve` or `adagrpo recommend`"
        )
    assert isinstance(policy, CausalLMPolicy) and options is not None
    levels = data.catalog.num_levels
    model = merged(policy.lm)
    model.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=run.config.evaluation.beam_width,
        num_return_sequences=10,
        max_new_tokens=levels,
        length_penalty=0.0,
        pad_token_id=policy.vocabulary.outside_token,
        eos_token_id=policy.vocabulary.outside_token,
    )
    model.save_pretrained(folder)
    (folder / VOCABULARY_FILE).write_text(policy.vocabulary.dump(), encoding="utf-8")
    catalog = {
        "version": data.version.name,
        "item_ids": data.item_ids.to_list(),
        "codes": data.catalog.codes.tolist(),
        "delisted": data.item_ids.filter(pl.Series(~data.catalog.listed.cpu().numpy())).to_list(),
        "preamble": policy.preamble.tolist(),
        "between": policy.between.tolist(),
        "suffix": policy.suffix.tolist(),
        "max_history": run.config.max_history,
    }
    (folder / "catalog.json").write_text(json.dumps(catalog) + "\n", encoding="utf-8")
    shutil.copyfile(Path(prefix_function.__file__), folder / "semantic_ids.py")
    if options.checkpoint is not None:
        copy_tokenizer(run.data / options.checkpoint, folder)
    usage = _usage(run, levels)
    parameters = sum(weight.numel() for weight in model.parameters())
    card = model_card(run, chosen, checkpoint, parameters=parameters, usage=usage)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _usage(run: RunDirectory, levels: int) -> str:
    mask = run.config.evaluation.exclude_history
    masked = (
        "\nIts evaluation left the items of the history out of the lists, and so does `exclude`: the whole history, of "
        "which the prompt holds the last items alone."
        if mask
        else ""
    )
    allowed = f"ids.prefix_function(len(prompt){', exclude=[HISTORY]' if mask else ''})"
    return f"""A generative recommender: it writes the next item of a history as {levels} Semantic-ID tokens.{masked}

Weights are float32, and `generate` computes in float32.
`adagrpo serve --precision float32` gives the same lists, and scores that differ by less than 1e-5.
In bfloat16 neither these lists nor those of a server are the same to the last place.

```python
import sys; sys.path.insert(0, FOLDER)
import torch
from semantic_ids import SemanticIds
from transformers import AutoModelForCausalLM

ids, model = SemanticIds(FOLDER), AutoModelForCausalLM.from_pretrained(FOLDER)
prompt = ids.prompt(HISTORY)  # item ids, oldest first
output = model.generate(torch.tensor([prompt]), prefix_allowed_tokens_fn={allowed})
print([ids.item(tokens) for tokens in output[:, len(prompt):].tolist()])
```"""


LICENCE = "# license: name yours here before you publish this folder; adagrpo does not choose one\n"
LIMITS = """\
- It knows the items of its catalogue and no other; a new item needs codes, and training that has seen them.
- It learned from logs, so it repeats what was shown and bought there; a group that is rare in them is served worse.
- Offline metrics reward the item that was logged next. What users would make of others they do not say.
- Unconstrained generation can write invalid Semantic IDs; use the prefix function of this folder."""


def model_card(run: RunDirectory, chosen: Chosen, checkpoint: str, *, parameters: int, usage: str) -> str:
    """Return the text of README.md."""
    measured = _measured(run, chosen, checkpoint)
    results = _results(run, chosen, checkpoint, measured.get("test") or {})
    content: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["recommendation", "generative-retrieval", "semantic-ids", "adagrpo"],
    }
    if results:
        of_part = f", {measured['eligible']['items']:,} of its items" if "eligible" in measured else ""
        entry = {
            "task": {"type": "recommendation", "name": "next-item recommendation"},
            "dataset": {"name": f"{run.config.name}{of_part}", "type": run.config.name},
            "metrics": [
                {"type": name, "name": f"{metric_label(name)} (test)", "value": round(value["mean"], 6)}
                for name, value in results.items()
            ],
        }
        content["model-index"] = [{"name": f"{run.config.name}-{chosen.arm}-{checkpoint}", "results": [entry]}]
    summary = find_content(run, "prepare", "summary.json") or {}
    counts = ("users", "items", "interactions", "training_interactions", "validation_cases", "test_cases")
    data = tuple((name.replace("_", " "), f"{summary[name]:,}") for name in counts if name in summary)
    simulated = "- The data are simulated; the numbers say nothing about a real shop.\n"
    return f"""---
{LICENCE}{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---

# {run.config.name}: {chosen.arm}, {checkpoint} checkpoint

{usage}

## Data

{to_markdown(Table.of(("data", "number"), data))}

## Model

{_model(run, parameters)}

## Training

{_training(run, chosen, checkpoint)}

## Results

{_results_text(run, results, measured.get("eligible"))}

## Should the reward have been used?

{_verdict(run)}

## Limits

{simulated if run.config.data.marketplace else ""}{LIMITS}

## How it was made

Made by adagrpo {__version__}, seed {run.config.seed}, configuration `{config_hash(run.config)}`.
The configuration itself is in run.yaml of the run. Before you publish, add a licence and a contact here.
"""


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
                thresholds = options.of_gate(options.tested_by(arm.admits))
                found = find_content(run, "train", arm.name, THRESHOLDS_FILE) or {}
                thresholds |= {name: found[name] for name in ("tau", "rho") if found}
                told = (f"{name} {value}" for name, value in thresholds.items() if value is not None)
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
    parts = evaluation_of(chosen.arm, checkpoint)
    path = run.find(*parts, "metrics.json")
    if path is None or (chosen.arm == START and checkpoint != "best"):
        return {}
    return read_json(path) if of_these_weights(run, "/".join(parts), chosen.arm, checkpoint) else {}


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
