"""Export a policy as a Hugging Face folder.

config.json, model.safetensors, generation_config.json     for `AutoModelForCausalLM.from_pretrained`
semantic_ids.json, catalog.json                            token offsets of codes; items and their codes
semantic_ids.py                                            `adagrpo.policies.prefix_function`, standalone
README.md                                                  the model card; the base model's tokenizer, if any
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl

from adagrpo.errors import UserError
from adagrpo.pipeline.checks import check
from adagrpo.pipeline.choose_checkpoint import Checkpoint, Chosen, choose_checkpoint
from adagrpo.pipeline.directory import RunDirectory, refuse_without_order
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.model_card import model_card
from adagrpo.pipeline.versions import LATEST, open_version
from adagrpo.policies import prefix_function
from adagrpo.storage.writing import atomic_folder


def export(
    run: RunDirectory,
    to: Path,
    arm: str | None = None,
    checkpoint: Checkpoint = "best",
    catalog: str = LATEST,
) -> dict[str, object]:
    """Write a checkpoint as a Hugging Face folder, with merged adapters and float32 weights.

    Args:
        arm: see `adagrpo.pipeline.choose_checkpoint.choose_checkpoint`.
        catalog: see `adagrpo.pipeline.versions.open_version`.

    Returns:
        Folder, arm, checkpoint, step, reason for the choice, items, catalogue and precision.

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
    items = int(version.codes.listed.sum())
    about = {"folder": str(to), "arm": chosen.arm, "checkpoint": checkpoint, "step": chosen.step}
    return about | {"why": chosen.why, "items": items, "catalog_version": version.name, "precision": "float32"}


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
