"""The command line in the process of the tests, which has imported everything already."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple
from unittest.mock import patch

import pytest

from adagrpo import cli


class Answer(NamedTuple):
    status: int
    out: str
    err: str


def command(*arguments: object) -> Answer:
    with (
        patch.dict(os.environ),
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
        patch("sys.argv", ["adagrpo", *map(str, arguments)]),
        pytest.raises(SystemExit) as end,
    ):
        os.environ.pop("ADAGRPO_TRACEBACK", None)
        cli.main()
    return Answer(int(end.value.code or 0), out.getvalue(), err.getvalue())
