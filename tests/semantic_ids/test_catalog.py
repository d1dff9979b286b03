from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from adagrpo.errors import UserError
from adagrpo.semantic_ids.catalog import Catalog, audit, resolve_collisions
from adagrpo.semantic_ids.published import import_semantic_ids

torch.set_num_threads(2)

CODES = torch.tensor([[0, 2], [1, 0], [1, 2]])


def test_from_codes_measures_the_levels_or_takes_them() -> None:
    catalog = Catalog.from_codes(CODES.numpy().astype(np.int32))
    assert catalog.level_sizes == (2, 3)
    assert (catalog.num_items, catalog.num_levels, catalog.codes.dtype) == (3, 2, torch.int64)
    wide = Catalog.from_codes(CODES, [4, 8])
    assert wide.level_sizes == wide.trie.level_sizes == (4, 8)
    assert wide.lookup(torch.tensor([[[1, 2], [3, 7]]])).tolist() == [[2, -1]]
    moved = wide.to("cpu")
    assert torch.equal(moved.codes, CODES) and moved.lookup(CODES).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("codes", "sizes", "message"),
    [
        ([[0, 1], [2, 2], [0, 0], [2, 2], [0, 1]], None, r"items 1 and 3 share the codes \[2, 2\]"),
        ([[0, 1], [0, -3]], None, r"item 1 has code -3 at level 2; it must be in 0 \.\. 1"),
        ([[0, 1], [4, 0]], (4, 2), r"item 1 has code 4 at level 1; it must be in 0 \.\. 3"),
        ([[0, 1], [0, 2**31]], None, r"item 1 has code 2147483648 at level 2; it must be in 0 \.\. 2147483647"),
        ([[0, 2**63 - 1]], None, r"item 0 has code 9223372036854775807 at level 2; it must be in 0 \.\. 2147483647"),
        ([[0, 2**40]], (1, 2**41), r"item 0 has code 1099511627776 at level 2; it must be in 0 \.\. 2147483647"),
    ],
)
def test_from_codes_names_the_items(codes: list[list[int]], sizes: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Catalog.from_codes(torch.tensor(codes), sizes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("codes", "sizes"),
    [(torch.zeros(3), None), (torch.zeros(3, 0, dtype=torch.int64), None), (torch.rand(3, 2), None), (CODES, (2,))],
)
def test_from_codes_refuses_other_shapes(codes: torch.Tensor, sizes: tuple[int, ...] | None) -> None:
    with pytest.raises(ValueError, match="codes"):
        Catalog.from_codes(codes, sizes)


@pytest.mark.parametrize("codes", [CODES, torch.empty(0, 2, dtype=torch.int64)])
def test_write_and_read_are_inverse(tmp_path: Path, codes: torch.Tensor) -> None:
    path = tmp_path / "codes.parquet"
    Catalog.from_codes(codes, (5, 3)).write(path)
    assert pl.read_parquet_schema(path) == {"item": pl.Int32(), "codes": pl.List(pl.Int32())}
    back = Catalog.read(path)
    assert back.level_sizes == (5, 3)
    assert torch.equal(back.codes, codes)


def test_read_sorts_by_item(tmp_path: Path) -> None:
    path = tmp_path / "codes.parquet"
    Catalog.from_codes(CODES).write(path)
    pl.read_parquet(path).reverse().write_parquet(path)
    assert torch.equal(Catalog.read(path).codes, CODES)


def test_read_says_what_is_damaged(tmp_path: Path) -> None:
    path, sidecar = tmp_path / "codes.parquet", tmp_path / "codes.json"
    with pytest.raises(UserError, match=r"codes\.json: no such file"):
        Catalog.read(path)
    for text in ("{", "[]", '{"level_sizes": [2, 0]}', '{"level_sizes": 2}', '{"sizes": [2]}'):
        sidecar.write_text(text)
        with pytest.raises(UserError, match=r"codes\.json: expected"):
            Catalog.read(path)
    sidecar.write_text(json.dumps({"level_sizes": [2, 3]}))
    with pytest.raises(UserError, match=r"codes\.parquet: no such file"):
        Catalog.read(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"codes\.parquet: cannot be read as Parquet"):
        Catalog.read(path)
    pl.DataFrame({"item": [0, 0], "codes": [[0, 1], [1, 1]]}).write_parquet(path)
    with pytest.raises(UserError, match=r"each of 0 \.\. 1 once"):
        Catalog.read(path)
    pl.DataFrame({"item": [0, 1], "codes": [[0], [1]]}).write_parquet(path)
    with pytest.raises(UserError, match=r"1 codes an item, but its \.json has 2"):
        Catalog.read(path)
    pl.DataFrame({"item": [0, 1], "codes": [["a"], ["b"]]}).write_parquet(path)
    with pytest.raises(UserError, match="expected lists of integers"):
        Catalog.read(path)


def published(path: Path, ids: list[object], codes: list[list[int | None] | None]) -> Path:
    pl.DataFrame({"item_id": ids, "rqvae": codes}, schema_overrides={"rqvae": pl.List(pl.Int16)}).write_parquet(path)
    return path


def test_import_follows_the_catalogue_order(tmp_path: Path) -> None:
    path = published(tmp_path / "sids.parquet", [10, 20, 30], [[1, 2], [3, 4], [5, 6]])
    for ids in (pl.Series([30, 10], dtype=pl.Int32), pl.Series(["30", "10"])):
        codes = import_semantic_ids(path, ids, column="rqvae")
        assert codes.dtype == np.int64
        assert codes.tolist() == [[5, 6], [1, 2]]
    assert len(import_semantic_ids(path, pl.Series([], dtype=pl.Int64), column="rqvae")) == 0


def test_import_takes_arrays_and_another_id_column(tmp_path: Path) -> None:
    path = tmp_path / "sids.parquet"
    sid = pl.Series("sid", [[1, 2], [3, 4]], dtype=pl.Array(pl.UInt8, 2))
    pl.DataFrame([pl.Series("asin", ["a", "b"]), sid]).write_parquet(path)
    codes = import_semantic_ids(path, pl.Series(["b", "a"]), column="sid", id_column="asin")
    assert codes.tolist() == [[3, 4], [1, 2]]


def test_a_published_id_with_a_fraction_is_no_item(tmp_path: Path) -> None:
    path = tmp_path / "ids.parquet"
    pl.DataFrame({"item_id": [1.0, 1.5, 2.0], "sid": [[1], [2], [3]]}).write_parquet(path)
    assert import_semantic_ids(path, pl.Series([2, 1]), column="sid").tolist() == [[3], [1]]


def test_the_largest_code_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "codes.parquet"
    Catalog.from_codes(torch.tensor([[0, 2**31 - 1]])).write(path)
    assert Catalog.read(path).codes.tolist() == [[0, 2**31 - 1]]


def test_a_published_id_is_text_as_it_is_written(tmp_path: Path) -> None:
    path = published(tmp_path / "sids.parquet", ["007", "7", "8"], [[1], [2], [3]])
    assert import_semantic_ids(path, pl.Series([8, 7]), column="rqvae").tolist() == [[3], [2]]
    with pytest.raises(UserError, match="no row for item '7'"):
        import_semantic_ids(published(path, ["007"], [[1]]), pl.Series([7]), column="rqvae")


def test_a_published_code_that_no_catalogue_stores_is_refused(tmp_path: Path) -> None:
    pl.DataFrame({"item_id": ["a", "b"], "sid": [[1], [2**31]]}).write_parquet(tmp_path / "sids.parquet")
    with pytest.raises(UserError, match=r"item 'b' has \[2147483648\]; codes start at 0 and end at 2147483647"):
        import_semantic_ids(tmp_path / "sids.parquet", pl.Series(["a", "b"]), column="sid")


@pytest.mark.parametrize(
    ("ids", "codes", "column", "message"),
    [
        (["a", "b"], [[1], [2]], "rqvae", "no row for item 'c' of 3 items"),
        (["a", "b", "c"], [[1], [2], [3]], "letter", "no column 'letter'; the columns are item_id, rqvae"),
        (["a", "b", "c"], [[1, 2], [3, 4], [5]], "rqvae", r"item 'c' has \[5\]; expected 2 integers"),
        (["a", "b", "c"], [[1, 2], None, [5, 6]], "rqvae", "item 'b' has None; expected 2 integers"),
        (["a", "b", "c"], [[1, 2], None, None], "rqvae", "item 'b' has None; expected 2 integers"),
        (["a", "b", "c"], [[1, 2], [3, None], [5, 6]], "rqvae", r"item 'b' has \[3, None\]; expected 2 integers"),
        (["a", "b", "c"], [[], [], []], "rqvae", r"item 'a' has \[\]; expected some integers"),
        (["a", "b", "c", "b"], [[1], [2], [3], [4]], "rqvae", "item 'b' has more than one row"),
        (["a", "b", "c"], [[1], [2], [3]], "item_id", "holds String; expected lists of integers"),
        (["a", "b", "c"], [[1, 2], [3, -1], [5, 6]], "rqvae", r"item 'b' has \[3, -1\]; codes start at 0"),
    ],
)
def test_import_names_what_is_wrong(
    tmp_path: Path, ids: list[object], codes: list[list[int | None] | None], column: str, message: str
) -> None:
    path = published(tmp_path / "sids.parquet", ids, codes)
    with pytest.raises(UserError, match=message) as caught:
        import_semantic_ids(path, pl.Series(["a", "b", "c"]), column=column)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_audit_by_hand() -> None:
    before = np.array([[0, 1], [0, 1], [0, 1], [1, 0], [1, 1], [1, 1]])
    catalog = Catalog.from_codes(resolve_collisions(before), (4, 2, 3))
    report = audit(before, catalog, reconstruction_error=0.25)
    json.dumps(report, allow_nan=False)
    assert (report["items"], report["levels"], report["distinct_sequences"]) == (6, 3, 3)
    assert (report["largest_collision"], report["reconstruction_error"]) == (3, 0.25)
    assert report["collision_rate"] == pytest.approx(5 / 6, rel=1e-12)
    assert report["density"] == pytest.approx(0.25, rel=1e-12)
    assert report["log10_density"] == pytest.approx(math.log10(0.25), rel=1e-12)
    first, second, third = report["per_level"]
    assert (first["size"], first["codes_used"], first["largest_cluster"], first["prefixes"]) == (4, 2, 3, 2)
    assert first["entropy"] == pytest.approx(math.log(2), rel=1e-12)
    assert first["entropy_share"] == pytest.approx(0.5, rel=1e-12)
    assert (second["codes_used"], second["largest_cluster"], second["prefixes"]) == (2, 5, 3)
    assert second["entropy"] == pytest.approx(-(5 / 6 * math.log(5 / 6) + 1 / 6 * math.log(1 / 6)), rel=1e-12)
    assert (third["codes_used"], third["largest_cluster"], third["prefixes"]) == (3, 3, 6)


def test_audit_of_edge_catalogues() -> None:
    single = audit(torch.tensor([[0]]), Catalog.from_codes(torch.tensor([[0]])))
    assert (single["collision_rate"], single["density"], single["log10_density"]) == (0.0, 1.0, 0.0)
    assert single["per_level"][0]["entropy"] == 0.0 and single["per_level"][0]["entropy_share"] is None
    nothing = torch.empty(0, 2, dtype=torch.int64)
    empty = audit(nothing, Catalog.from_codes(nothing, (2, 2)))
    assert (empty["items"], empty["collision_rate"], empty["log10_density"]) == (0, 0.0, None)
    json.dumps(empty, allow_nan=False)
    with pytest.raises(ValueError, match="expected \\(1, L\\)"):
        audit(CODES, Catalog.from_codes(torch.tensor([[0]])))
