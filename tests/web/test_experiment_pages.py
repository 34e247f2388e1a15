"""The pages that show experiments: what each state looks like, what is held back until it means something, and every chart's numbers."""

import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from experiment_histories import History, run_history
from page_reading import Page, page

from mmserver.catalog.catalog import Actor
from mmserver.catalog.registering import register_model
from mmserver.web.current import EXPERIMENTER_KEY, MODEL_READER_KEY

TEST = Actor("test")
ROOT = "/api/ml/experiments"
PAGES = "/ui/experiments"
HOSTILE_STATUS = "<script>"


def plan(control: str, treatment: str, weight: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"control": (control, "latest"), "treatment": (treatment, "latest"), "treatment_weight": weight, **more}


@pytest.fixture(scope="module")
def site(
    make_web: Callable[..., Any], group_writer: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """One experiment in each state that looks its own way."""
    directory = tmp_path_factory.mktemp("experiment-pages")
    web = make_web(directory / "data")
    for seed, name in enumerate(("alpha", "beta", "gamma")):
        group_writer(directory / name, "BTCUSDT_ret", seed=seed)
        register_model(web.store, name, str(directory / name), TEST)
    soon = {"min_hours": 4, "min_samples": 20, "min_units": 5, "planned_units": 200}
    histories = {
        "better": (
            plan("alpha", "beta", policy={**soon, "max_error_rate_margin": 0.5}),
            History(hours=30, accuracy=(0.4, 0.95), evaluate_every_h=1, stops=True),
        ),
        "classic": (
            plan("alpha", "beta", policy={"policy": "classic", "min_hours": 4, "min_samples": 20}),
            History(hours=12, error_rate=(0.0, 0.3), stops=True),
        ),
        "shadow": (plan("alpha", "beta", mode="shadow", block_s=3600.0, policy=soon), History(hours=8, stops=True)),
        "sick": (plan("alpha", "beta", policy=soon), History(hours=40, skew=0.9, lost=0.5, stops=True)),
        "young": (plan("alpha", "beta", 0.25), History(hours=3, evaluate_every_h=1, ramp_at_h=2)),
    }
    for experiment_id, (said, history) in histories.items():
        run_history(web.store, experiment_id, said, history)
    for experiment_id, is_started in (("draft", False), ("empty", True)):
        body = {
            "experiment_id": experiment_id,
            "control_model": "gamma",
            "control_version": "latest",
            "treatment_model": "beta",
            "treatment_version": "latest",
            "start": is_started,
        }
        assert web.client.post(ROOT, json=body).status_code == 201
    yield web
    web.app.extensions[EXPERIMENTER_KEY].close()


def shown(site: Any, experiment_id: str, rest: str = "") -> Page:
    return page(site, f"{PAGES}/{experiment_id}{rest}")


def links(found: Page) -> list[str]:
    return [str(one["href"]) for one in found.all("a")]


def rows_of(site: Any, experiment_id: str, chart: str) -> list[dict[str, str]]:
    response = site.client.get(f"{PAGES}/{experiment_id}/charts/{chart}.csv")
    assert (response.status_code, response.mimetype) == (200, "text/csv")
    return list(csv.DictReader(io.StringIO(response.text)))


# --- the list -----------------------------------------------------------------------------------------------------------


def test_all_experiments_are_listed_the_newest_first_with_their_last_verdicts(site: Any) -> None:
    found = page(site, PAGES)
    named = [link.rpartition("/")[2] for link in links(found) if re.fullmatch(rf"{PAGES}/[a-z]+", link)]
    assert named == ["empty", "draft", "young", "sick", "shadow", "classic", "better"]
    assert "✓ promote" in found.text
    assert "✕ rollback" in found.text
    assert "/ui/create-experiment" in links(found)


def test_the_list_is_filtered_by_status_and_other_statuses_are_refused(site: Any) -> None:
    drafts = page(site, f"{PAGES}?status=draft")
    assert f"{PAGES}/draft" in links(drafts)
    assert f"{PAGES}/better" not in links(drafts)
    assert "No experiment is applied." in page(site, f"{PAGES}?status=applied").text
    refused = site.client.get(f"{PAGES}?status={HOSTILE_STATUS}")
    assert refused.status_code == 400
    assert HOSTILE_STATUS not in refused.text


def test_the_list_goes_on_to_older_ones(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmserver.web.experiment_pages.EXPERIMENTS_A_PAGE", 3)
    seen: list[str] = []
    path: str | None = PAGES
    while path:
        found = page(site, path)
        seen += [link.rpartition("/")[2] for link in links(found) if re.fullmatch(rf"{PAGES}/[a-z]+", link)]
        path = next((str(one["href"]) for one in found.all("a") if one.get("rel") == "next"), None)
    assert seen == ["empty", "draft", "young", "sick", "shadow", "classic", "better"]
    assert "There are no older ones." in page(site, f"{PAGES}?before=1").text


@pytest.mark.parametrize("path", [f"{PAGES}/absent", f"{PAGES}/absent/report", f"{PAGES}/absent/charts/effect.csv"])
def test_what_there_is_not_is_not_found(site: Any, path: str) -> None:
    assert site.client.get(path).status_code == 404


def test_an_unknown_chart_is_not_found(site: Any) -> None:
    assert site.client.get(f"{PAGES}/better/charts/secrets.csv").status_code == 404


# --- one experiment -----------------------------------------------------------------------------------------------------


def test_a_page_says_what_to_do_and_the_same_as_the_analysis(site: Any) -> None:
    found, analysis = shown(site, "better"), site.json(f"{ROOT}/better/analysis")
    assert analysis["recommendation"]["verdict"] == "promote"
    assert "Promote the treatment" in found.text
    for reason in analysis["recommendation"]["reasons"]:
        assert reason in found.text
    assert f"{100 * analysis['treatment']['accuracy']:.2f} %" in found.text
    assert f"{analysis['health']['n_treatment_units']}" in found.text
    gain = f"{100 * analysis['improvement']['accuracy']['absolute']:+.3g} points"
    assert gain in found.text


@pytest.mark.parametrize(
    ("experiment_id", "moves"),
    [
        ("draft", {"edit", "start"}),
        ("young", {"ramp", "stop", "apply", "outcomes"}),
        ("better", {"apply", "outcomes"}),
    ],
)
def test_a_page_links_to_what_can_be_done_now_and_to_nothing_else(
    site: Any, experiment_id: str, moves: set[str]
) -> None:
    every = {"edit", "start", "ramp", "stop", "apply", "outcomes"}
    found = {link.rpartition("/")[2] for link in links(shown(site, experiment_id))}
    assert found & every == moves


def test_a_draft_has_nothing_but_its_set_up(site: Any) -> None:
    found = shown(site, "draft")
    assert "nothing is split and nothing is logged" in found.text
    assert "not started" in found.text
    assert not found.all("figure")
    assert site.client.get(f"{PAGES}/draft/report").headers["Location"].endswith(f"{PAGES}/draft")
    assert rows_of(site, "draft", "effect") == []


def test_an_experiment_without_predictions_says_so_and_concludes_nothing(site: Any) -> None:
    found = shown(site, "empty")
    assert "there is nothing to draw" in found.text
    assert "nothing is decided yet" in found.text
    assert "nan" not in found.text.casefold().replace("finance", "")
    assert not found.all("figure")


def test_before_the_minimums_everything_is_grey_and_no_p_value_is_shown(site: Any) -> None:
    found = shown(site, "young")
    tables = [one.get("class") or "" for one in found.all("table")]
    assert any("early" in one for one in tables)
    assert "too early" in found.text
    assert "Too little is known to conclude anything" in found.text
    assert len([one for one in found.all("rect") if one.get("class") == "before"]) == 3
    assert "as asked" not in found.text
    looks = site.json(f"{ROOT}/young/analysis")["tests"]
    assert looks["accuracy_sequence"]["always_valid_p"] is not None, "which is there, and is held back"
    metrics = found.text.partition("Both arms")[2].partition("How it went")[0]
    assert not re.search(r"\d\.\d+\s*to promote", metrics)


def test_while_it_runs_no_t_test_is_shown_and_afterwards_only_with_its_condition(site: Any) -> None:
    assert "Welch’s t-test" not in shown(site, "young", "/report").text
    final = shown(site, "better", "/report").text
    assert re.search(r"Welch’s t-test.*right only if the experiment was looked at once", final)


def test_a_sick_experiment_is_invalid_and_says_which_check_failed(site: Any) -> None:
    found = shown(site, "sick")
    assert "Invalid" in found.text
    assert found.text.count("not sound") >= 3
    assert "not judged" in found.text
    assert "as asked" not in found.text
    assert any("early" in (one.get("class") or "") for one in found.all("table"))


def test_classic_is_shown_by_what_it_decides_by(site: Any) -> None:
    found = shown(site, "classic")
    assert "Roll back to the control" in found.text
    assert "valid only if looked at once" in found.text
    assert "beyond limit" in found.text
    assert "Welch's p is" in found.text
    assert re.search(r"By sequential the same look would say", found.text)


def test_a_shadow_experiment_has_no_split_to_be_sound(site: Any) -> None:
    found = shown(site, "shadow")
    assert "in shadow mode nothing is split" in found.text
    assert "SRM" not in found.text
    assert "answers all" in found.text


def test_phases_stand_with_their_shares(site: Any) -> None:
    found = shown(site, "young").text
    assert re.search(r"1\s*75 %\s*25 %", found)
    assert re.search(r"2\s*50 %\s*50 %", found)


def test_symbols_are_adjusted_for_how_many_were_looked_at(site: Any) -> None:
    found, analysis = shown(site, "better").text, site.json(f"{ROOT}/better/analysis")
    assert "Benjamini and Hochberg" in found
    by_symbol = analysis["by_symbol"]
    assert all(one["p_value"] <= one["adjusted_p_value"] for one in by_symbol)
    least = min(one["adjusted_p_value"] for one in by_symbol)
    first = found.partition("By symbol")[2].partition("/USDT")[0]
    shown_first = f"{first}/USDT".rpartition("\n")[2].strip()
    assert any(shown_first.endswith(one["symbol"]) for one in by_symbol if one["adjusted_p_value"] == least)


def test_an_archived_treatment_is_said(
    make_web: Callable[..., Any], xgboost_text: Callable[[int, int], bytes], tmp_path: Path
) -> None:
    web = make_web(tmp_path / "data")
    registry = "/api/ml/registry/models"
    for seed, (name, version) in enumerate((("hybrid", "1.0.0"), ("other", "1.0.0"), ("other", "1.1.0"))):
        file = (io.BytesIO(xgboost_text(3, seed)), "model.json")
        said = {"name": name, "version": version, "factors": '["a", "b", "c"]', "file": file}
        assert web.client.post(registry, data=said, content_type="multipart/form-data").status_code == 201
    assert web.client.post(f"{registry}/other/1.0.0/promote").status_code == 200
    arms = {"control_model": "hybrid", "treatment_model": "other"}
    versions = {"control_version": "1.0.0", "treatment_version": "1.0.0"}
    assert web.client.post(ROOT, json={"experiment_id": "x", **arms, **versions}).status_code == 201
    assert "The treatment answers nothing" not in shown(web, "x").text
    assert web.client.post(f"{registry}/other/1.1.0/promote").status_code == 200
    found = shown(web, "x").text
    assert "The treatment answers nothing: its version was archived" in found
    assert "The control answers in its place" in found
    assert f"{PAGES}/x" in links(page(web, "/ui/models/hybrid"))
    web.app.extensions[MODEL_READER_KEY].close()
    web.app.extensions[EXPERIMENTER_KEY].close()


def test_a_server_that_only_reads_shows_everything_and_offers_no_change(
    site: Any, make_web: Callable[..., Any]
) -> None:
    reading = make_web(site.directory, read_only=True)
    found = shown(reading, "better")
    assert "Promote the treatment" in found.text
    assert len(found.all("figure")) == 4
    assert "What can be done" not in [one.get("aria-label") for one in found.all("nav")]
    assert "/ui/create-experiment" not in links(page(reading, PAGES))
    reading.app.extensions[EXPERIMENTER_KEY].close()


# --- charts -------------------------------------------------------------------------------------------------------------


def test_every_chart_has_its_takeaway_its_table_and_its_csv(site: Any) -> None:
    found = shown(site, "better")
    assert len(found.all("figure")) == 4
    assert len(found.all("figcaption")) == 4
    assert len(found.all("desc")) == 4
    assert len(found.all("details")) == 4
    for chart in ("effect", "returns", "latency", "units"):
        assert f"{PAGES}/better/charts/{chart}.csv" in links(found)
        assert len(rows_of(site, "better", chart)) > 20


def test_the_last_point_of_each_chart_is_what_the_analysis_says(site: Any) -> None:
    analysis = site.json(f"{ROOT}/better/analysis")
    effect = rows_of(site, "better", "effect")[-1]
    accuracy = analysis["improvement"]["accuracy"]
    for column, name in (
        ("Difference (points)", "absolute"),
        ("95% sequence, from (points)", "lower"),
        ("95% sequence, to (points)", "upper"),
    ):
        assert float(effect[column]) == pytest.approx(100 * accuracy[name])
    units = rows_of(site, "better", "units")[-1]
    assert float(units["Control (units)"]) == analysis["control"]["n_units"]
    returns = rows_of(site, "better", "returns")[-1]
    for arm in ("control", "treatment"):
        per_unit = analysis[arm]["total_return"] / analysis[arm]["n_units_matured"]
        assert float(returns[f"{arm.capitalize()} (%)"]) == pytest.approx(100 * per_unit)


def test_long_charts_are_for_the_script_and_short_ones_are_not(site: Any) -> None:
    long, short = shown(site, "better"), shown(site, "shadow")
    assert [one["src"].rpartition("/")[2] for one in long.all("script") if one["src"]] == [
        "uPlot.iife.min.js",
        "charts.js",
    ]
    assert short.all("script") == []
    assert [one for one in short.all("figure") if "data-plot" in one] == []
    assert shown(site, "better", "/report").all("script") == [], "what is printed needs none"


def test_no_coordinate_of_a_chart_leaves_its_frame(site: Any) -> None:
    for experiment_id in ("better", "young", "sick", "classic"):
        paths = [one["d"] or "" for one in shown(site, experiment_id).all("path") if "line" in (one.get("class") or "")]
        numbers = [tuple(map(float, pair)) for path in paths for pair in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path)]
        assert numbers
        assert all(0.0 <= x <= 480.0 and 0.0 <= y <= 240.0 for x, y in numbers)


# --- elsewhere ----------------------------------------------------------------------------------------------------------


def test_a_report_is_interim_while_it_runs_and_final_afterwards(site: Any) -> None:
    assert "Interim report" in shown(site, "young", "/report").text
    final = shown(site, "better", "/report")
    assert "Final report" in final.text
    assert "Interim" not in final.text
    assert f"{ROOT}/better/analysis" in links(final)


def test_a_model_s_page_names_the_running_experiments_it_is_in_and_no_other(site: Any) -> None:
    assert f"{PAGES}/young" in links(page(site, "/ui/models/alpha"))
    beta = links(page(site, "/ui/models/beta"))
    assert f"{PAGES}/young" in beta
    assert f"{PAGES}/empty" in beta
    assert f"{PAGES}/better" not in beta
    assert f"{PAGES}/young" not in links(page(site, "/ui/models/gamma"))
