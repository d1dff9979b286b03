"""The tokenizers behind their settings, on a run that was prepared; the language model is a tiny one made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from torch import nn

from adagrpo.data.prepared import load_item_ids
from adagrpo.data.sequences import emptied
from adagrpo.errors import UserError
from adagrpo.pipeline import Run
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stages.tokenize import item_vectors, start_from_vectors
from adagrpo.types import Ragged

from ..consoles import Heard

IDS = [10 * index + 3 for index in range(30)]


def codes_of(run: Run) -> np.ndarray:
    return np.array(pl.read_parquet(run.path("tokenize", "codes.parquet"))["codes"].to_list())


def audit_of(run: Run) -> dict[str, Any]:
    return dict(json.loads(run.path("tokenize", "audit.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("quantizer", ["kmeans", "balanced_kmeans", "rq_vae"])
def test_every_quantizer_and_either_way_with_collisions(copied: Path, data: Path, world: Any, quantizer: str) -> None:
    options = {"quantizer": quantizer, "codes": 8, "rq_vae": {"epochs": 4, "hidden": 8, "width": 4}}
    seen = {}
    for collisions in ("level", "nearest"):
        run: Run = world.run(copied, data, tokenizer={**options, "collisions": collisions})
        run.tokenize()
        seen[collisions], report = codes_of(run), audit_of(run)
        assert len(np.unique(seen[collisions], axis=0)) == 30
        assert report["collision_rate"] > 0 and report["reconstruction_error"] >= 0
        assert quantizer == "rq_vae" or report["reconstruction_error"] < 1  # four epochs are no fit
        if quantizer == "balanced_kmeans":
            assert report["per_level"][0]["largest_cluster"] <= 5  # ceil(1.1 * 30 / 8)
    assert seen["level"].shape == (30, 3) and seen["nearest"].shape == (30, 2)
    np.testing.assert_array_equal(seen["level"][:, 0], seen["nearest"][:, 0])
    moved = seen["level"][:, 1] != seen["nearest"][:, 1]
    assert moved.any() and not moved[seen["level"][:, 2] == 0].all()


def test_the_quantizers_differ(copied: Path, data: Path, world: Any) -> None:
    actual = set()
    for quantizer in ("kmeans", "balanced_kmeans", "rq_vae"):
        run: Run = world.run(copied, data, tokenizer={"quantizer": quantizer, "codes": 4})
        run.tokenize()
        actual.add(codes_of(run)[:, :2].tobytes())
    assert len(actual) == 3


@pytest.mark.parametrize("collisions", ["level", "nearest"])
def test_published_ids_that_collide(world: Any, copied: Path, data: Path, tmp_path: Path, collisions: str) -> None:
    codes = [[index // 10, index % 5] for index in range(29)] + [[2, 29]]
    pl.DataFrame({"item_id": IDS, "sid": codes}).write_parquet(data / "collide.parquet")
    published = {"path": "collide.parquet", "column": "sid"}
    run: Run = world.run(copied, data, tokenizer={"published": published, "collisions": collisions})
    run.tokenize()
    rows = [IDS.index(item) for item in load_item_ids(run.path("prepare"))]
    actual, report = codes_of(run)[np.argsort(rows)], audit_of(run)
    assert len(np.unique(actual, axis=0)) == 30 and actual[:, 0].tolist() == [row[0] for row in codes]
    assert report["collision_rate"] == pytest.approx(28 / 30) and report["reconstruction_error"] is None
    kept = (actual[:, :2] == np.array(codes)).all(axis=1)
    assert kept.all() if collisions == "level" else kept.sum() == 16  # one item of each of the 16 sequences
    assert actual.shape[1] == (3 if collisions == "level" else 2)


def test_too_many_items_for_the_free_codes(world: Any, copied: Path, data: Path) -> None:
    run: Run = world.run(copied, data, tokenizer={"levels": 1, "codes": 8, "collisions": "nearest"})
    with pytest.raises(UserError, match=r"tokenizer\.collisions: 30 items share their first 0 codes and level 1 has 8"):
        run.tokenize()


@pytest.mark.parametrize("vectors", ["text", "attributes", "language_model"])
def test_vectors_of_what_no_item_has_are_refused(
    world: Any, tmp_path: Path, data: Path, model: Path, vectors: str
) -> None:
    folder = tmp_path / "data"
    world.write(folder)
    (folder / "items.csv").write_text("item_id,title,brand\nI3,Lamp,a\nI13,Chair,b\n")
    heard = Heard()
    run: Run = world.run(
        tmp_path / "run",
        folder,
        heard,
        data={"items": {"path": "items.csv", "text": ["title"], "attributes": ["brand"]}},
        tokenizer={"vectors": {vectors: 1.0, "cooccurrence": 1.0}, "language_model": str(model)},
    )
    run.prepare()
    assert json.loads(run.path("prepare", "summary.json").read_text())["items_described"] == 0
    assert heard.notes == [
        "note: items.csv describes none of the 30 items of the logs; an item without a row there has neither text"
        " nor attributes. Ids are compared as they are written"
    ]
    with pytest.raises(UserError, match=rf"tokenizer\.vectors: {vectors} is asked for, and none of the 30 items has"):
        run.tokenize()


def test_an_item_table_that_is_not_utf_8_is_said(world: Any, tmp_path: Path) -> None:
    folder, heard = tmp_path / "data", Heard()
    world.write(folder)
    table = "item_id,title\n" + "".join(f"{10 * item + 3},Café {item}\n" for item in range(30))
    for encoding, said in (("latin-1", 1), ("utf-8", 0)):
        heard.notes.clear()
        (folder / "items.csv").write_text(table, encoding=encoding)
        items = {"path": "items.csv", "text": ["title"]}
        world.run(tmp_path / encoding, folder, heard, data={"items": items}).prepare()
        assert len(heard.notes) == said
        assert all("items.csv is not UTF-8: what cannot be decoded is lost" in one for one in heard.notes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of ten words with random vectors."""
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    tokenizers = pytest.importorskip("tokenizers")
    tokens = {f"w{index}": index for index in range(10)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(tokens, unk_token="w0"))
    weights = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    folder = tmp_path_factory.mktemp("model")
    embedding = modules.StaticEmbedding(tokenizer, embedding_weights=weights)
    library.SentenceTransformer(modules=[embedding], device="cpu").save(str(folder))
    return folder


@pytest.mark.slow
def test_a_language_model_is_asked_once(world: Any, tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "data"
    world.write(folder)
    pl.DataFrame({"item_id": IDS, "title": [f"w{index % 10}" for index in range(30)]}).write_parquet(
        folder / "items.parquet"
    )

    def run(**changes: Any) -> list[tuple[str, str]]:
        made: Run = world.run(
            tmp_path / "run",
            folder,
            data={"items": {"path": "items.parquet", "text": ["title"]}},
            tokenizer={"vectors": {"language_model": 1.0}, "language_model": str(model), "levels": 1, "codes": 16}
            | changes,
        )
        made.path("events.jsonl").unlink(missing_ok=True)
        made.prepare()
        made.tokenize()
        events = map(json.loads, made.path("events.jsonl").read_text(encoding="utf-8").splitlines())
        return [(event["stage"], event["event"]) for event in events if event["event"] != "start"][1:]

    assert run() == [("encode", "end"), ("vectors", "end"), ("tokenize", "end")]
    codes = np.array(pl.read_parquet(tmp_path / "run" / "tokenize" / "codes.parquet")["codes"].to_list())[:, 0]
    ids = pl.read_parquet(tmp_path / "run" / "prepare" / "items.parquet")["item_id"].to_list()
    by_title: dict[int, set[int]] = {}
    for item_id, code in zip(ids, codes.tolist(), strict=True):
        by_title.setdefault(IDS.index(item_id) % 10, set()).add(code)
    assert len(set(codes)) == len(by_title) == 10 and all(len(same) == 1 for same in by_title.values())
    assert run() == [("encode", "skip"), ("vectors", "skip"), ("tokenize", "skip")]
    assert run(quantizer="balanced_kmeans") == [("encode", "skip"), ("vectors", "skip"), ("tokenize", "end")]
    assert run(vectors={"cooccurrence": 1.0}) == [("vectors", "end"), ("tokenize", "end")]
    config = model / "config_sentence_transformers.json"
    config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert run() == [("encode", "end"), ("vectors", "end"), ("tokenize", "end")]
    with pytest.raises(UserError, match=r"tokenizer\.language_model: .*nowhere is no sentence-transformers model"):
        run(language_model="nowhere")


def test_an_item_table_starts_from_the_vectors(copied: Path, data: Path, world: Any) -> None:
    run: Run = world.run(copied, data)
    vectors = item_vectors(run)

    def started(training: Ragged | None = None, **changes: Any) -> np.ndarray:
        table = nn.Embedding(30, 16)
        table.weight.detach().fill_(0.5)
        start_from_vectors(world.run(copied, data, **changes), table, training)
        return table.weight.detach().numpy()

    rows = started()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1).mean(), 2.0, rtol=1e-5)  # as long as they were
    likeness = np.corrcoef((rows @ rows.T).ravel(), (vectors @ vectors.T).ravel())[0, 1]
    assert likeness > 0.9
    training = RunData(run).training
    np.testing.assert_array_equal(rows, started(training))
    assert not np.allclose(rows, started(emptied(training, np.arange(len(training)) < 30)))
    assert (started(training, tokenizer={"vectors": {"text": 1.0}}) == 0.5).all()  # no item has one
