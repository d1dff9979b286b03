"""What the project writes as YAML is read by libyaml as PyYAML reads it, within the same bounds."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from adagrpo.config.yaml_text import dump_yaml, parse_yaml

MARKS = st.text(
    st.sampled_from(" \t\n\r:{}[],\"'#&*!|>-%@`?\\0aeE.+1_~<=\x01\x7f\x85\xa0é\u2028\ufeff😀\ud83d\udcff"), max_size=30
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20) | MARKS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MARKS, inner, max_size=3))


@given(st.dictionaries(MARKS, VALUES, max_size=3))
def test_what_is_written_is_read_alike(content: dict[str, Any]) -> None:
    text = dump_yaml(content)
    assert repr(parse_yaml(text, ours=True)) == repr(parse_yaml(text)) == repr(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: " + "[" * 60 + "]" * 60, "more than 50 levels deep"),
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' is given twice, first in line 1"),
        ("a: &a [x]\nb: &b [*a, *a]\n" + "c: [*b, *b]\n" * 20_000, "stands for more than 1 MB"),
        ("a: &a [*a]", "the alias \\*a stands for what it is a part of"),
        ("a: 2020-13-45", "month must be"),
        ("a: {", "flow"),
    ],
)
@pytest.mark.parametrize("ours", [False, True])
def test_bounds_hold_for_either(text: str, says: str, ours: bool) -> None:
    with pytest.raises(yaml.YAMLError, match=says):
        parse_yaml(text, ours=ours)
