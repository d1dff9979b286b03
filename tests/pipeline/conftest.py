"""Charts take half of the time of a tiny run: they are drawn only for tests that look at one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from adagrpo.report import charts


@pytest.fixture(autouse=True, scope="module")
def _charts_are_looked_at_or_not_drawn(request: pytest.FixtureRequest, finished: object) -> Iterator[None]:
    """Put an empty picture for each chart, where the module's text knows of no `<svg>`; `finished` has charts."""
    with pytest.MonkeyPatch.context() as patch:
        if "<svg" not in request.path.read_text(encoding="utf-8"):
            patch.setattr(charts, "_DRAWN", {})
            patch.setattr(charts, "draw", lambda *_, **__: "<svg><title></title></svg>")
        yield
