"""RUN/refresh: which refresh of a run's list is served; 0 is the refit.

`NNNN/list` and `NNNN/trial` are runs inside the run, fitted on all rows so far, and on those before the rows of the
comparison. The rename of served.json, {"number": the served one, "last": the last finished one}, changes both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from adagrpo.errors import first_of
from adagrpo.lists.names import parse_list
from adagrpo.pipeline.directory import REFRESH, RunDirectory, hash_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import CatalogVersion, RunData
from adagrpo.pipeline.json_files import read_json
from adagrpo.pipeline.list_makers import ListMaker
from adagrpo.pipeline.refit import fitted_stages, refit_of, run_within
from adagrpo.pipeline.versions import open_version
from adagrpo.storage.artifacts import manifest
from adagrpo.storage.hashes import hash_json
from adagrpo.storage.writing import write_file

SERVED, ABOUT = "served.json", "refresh.json"


def refresh_of(
    run: RunDirectory, number: int, which: Literal["list", "trial"] = "list", begun: RunDirectory | None = None
) -> RunDirectory:
    """Return a refresh's directory, perhaps missing; `begun` is the fit it goes on from."""
    folder = run.directory / REFRESH / f"{number:04d}" / which
    return run_within(run, folder, begun or refit_of(run))


def refreshes(run: RunDirectory) -> tuple[int, int]:
    """Return the numbers of the refresh to serve, 0 for the refit, and the last finished one."""
    path = run.directory / REFRESH / SERVED
    content = read_json(path) if path.is_file() else {"number": 0, "last": 0}
    return int(content["number"]), int(content["last"])


def serve_refresh(run: RunDirectory, number: int, last: int) -> None:
    """Serve another refresh from now on, 0 for the refit; `last` is finished."""
    write_file(run.directory / REFRESH / SERVED, json.dumps({"number": number, "last": last}) + "\n")


def about_refresh(run: RunDirectory, number: int) -> dict[str, Any]:
    """Return the content of a finished refresh's refresh.json."""
    return read_json(run.directory / REFRESH / f"{number:04d}" / ABOUT)


def decided_by(run: RunDirectory, chosen: str) -> str:
    """Return the hash of what a refresh is of: the list and its fits."""
    refit = refit_of(run)
    files = [file for file in ListMaker(Models(RunData(refit))).files(parse_list(chosen)) if isinstance(file, str)]
    fits = {
        name: (manifest(refit.path(*name.split("/"))) or {})["fingerprint"] for name in fitted_stages(refit, chosen)
    }
    return hash_json([chosen, fits, {file: hash_of(refit, file) for file in [*files, *CatalogVersion(run, 0).files]}])


def served_refresh(run: RunDirectory, chosen: str) -> tuple[dict[str, Any] | None, str]:
    """Return refresh.json of the refresh that answers, None for the refit, and why not the one that should."""
    number, _ = refreshes(run)
    if not number:
        return None, ""
    about = about_refresh(run, number)
    if about["of"] != decided_by(run, chosen):
        return None, f"refresh {number} is of an earlier decision"
    if about["catalog"] != open_version(run).name:
        return None, f"refresh {number} is of version {about['catalog']} of the catalogue, which is not the latest"
    return about, ""


def of_rows(about: Mapping[str, Any]) -> list[str]:
    """Return what a refresh says of its rows."""
    rows, days = about["rows"], about["dropped_days"]
    said = [
        f"{about['understood']}: {rows['new']:,} rows are new, from {about['first']} to {about['last']}, with"
        f" {about['new_users']:,} new users and {about['new_items']:,} new items"
    ]
    said += [f"{rows['shown']:,} impressions are new"] if rows.get("shown") else []
    said += [f"{rows['repeated']:,} rows were known"] if rows["repeated"] else []
    said += [f"{rows['late']:,} rows are from before {about['known_to']} and were not known"] if rows["late"] else []
    return [*said, *([f"no row is from {first_of(days)}, and such days have rows"] if days else [])]


def sentences(about: Mapping[str, Any]) -> list[str]:
    """Return a refresh in words."""
    said = of_rows(about)
    if "gain" in about:
        means = about["ndcg@10"]
        mean, low, high = about["gain"]
        metric = "weighted NDCG@10" if about.get("exposure_weighted") else "NDCG@10"
        said.append(
            f"on {about['cases']:,} cases from {about['cases_from']}: {metric} {means['refreshed']:.4f} refreshed,"
            f" {means['served']:.4f} as served, {mean:+.4f} [{low:+.4f}, {high:+.4f}]"
        )
    if about.get("candidates"):
        least = about["least"]
        of = "in lists from the next refresh that shows them to be taken"
        what = of if least is None else f"in lists with at least {least} interaction{'' if least == 1 else 's'}"
        said.append(f"items that were not in lists: {what}")
    if about["takes_over"]:
        served = f"refresh {about['number']} of {about['list']} is served from now on: {about['why']}"
        return [*said, f"{served}; services take it at a reload", f"took {about['seconds']:.0f} s"]
    stays = f"refresh {about['before']}" if about["before"] else "the refit"
    return [*said, f"{stays} of {about['list']} stays: {about['why']}", f"took {about['seconds']:.0f} s"]
