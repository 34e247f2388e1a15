"""Forms that set experiments up, change, start, ramp, stop and apply them, and that take outcomes, all without a script."""

import html
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_reading import Page, page

from mmserver.catalog.catalog import Actor
from mmserver.catalog.registering import register_model
from mmserver.experiments.policies import ClassicPolicy, SequentialPolicy
from mmserver.web.current import EXPERIMENTER_KEY
from mmserver.web.experiment_typing import FIELDS, FIRST_TYPED

ROOT = "/api/ml/experiments"
NEW = "/ui/create-experiment"
OURS = {"Sec-Fetch-Site": "same-origin"}
HOSTILE = "<script>alert(1)</script>\"'& 💥"
ROW = [0.25, -1.5, 0.75]
ARMS = {
    "control_model": "alpha",
    "control_version": "latest",
    "treatment_model": "beta",
    "treatment_version": "latest",
}
_numbers = itertools.count()


@pytest.fixture(scope="module")
def site(
    make_web: Callable[..., Any], group_writer: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Two models of one symbol; tests are told apart by their experiments' names."""
    directory = tmp_path_factory.mktemp("experiment-forms")
    web = make_web(directory / "data")
    for seed, name in enumerate(("alpha", "beta")):
        group_writer(directory / name, "BTCUSDT_ret", seed=seed)
        register_model(web.store, name, str(directory / name), Actor("test"))
    yield web
    web.app.extensions[EXPERIMENTER_KEY].close()


@pytest.fixture
def name(site: Any) -> Iterator[str]:
    """A name that no other test has; what runs under any name is stopped afterwards, as one at a time may run."""
    yield f"exp-{next(_numbers)}"
    for one in site.json(f"{ROOT}?status=running")["items"]:
        assert site.client.post(f"{ROOT}/{one['experiment_id']}/stop").status_code == 200


def path_of(name: str, what: str = "") -> str:
    return f"/ui/experiments/{name}{what and '/' + what}"


def post(site: Any, path: str, **typed: Any) -> Any:
    return site.client.post(path, data=typed, headers=OURS)


def new(site: Any, name: str, **typed: Any) -> Any:
    """The form sent as a browser does, with all of its fields."""
    return post(
        site, NEW, **{**FIRST_TYPED, **ARMS, "experiment_id": name, "start": "later", "unit": "prediction", **typed}
    )


def running(site: Any, name: str, share: float = 0.5) -> None:
    assert new(site, name, start="now", treatment_share=str(share)).status_code == 303


def item(site: Any, name: str) -> Any:
    return site.json(f"{ROOT}/{name}")


def wrong_fields(text: str) -> set[str]:
    """The fields beside which something is said to be wrong, each named by the field itself."""
    shown = Page(text)
    said = {
        (attributes.get("id") or "").removesuffix("-wrong")
        for attributes in shown.all("p")
        if attributes.get("class") == "wrong"
    }
    for tag in ("input", "select", "textarea", "fieldset"):
        for attributes in shown.all(tag):
            if attributes.get("id") in said:
                assert f"{attributes['id']}-wrong" in (attributes["aria-describedby"] or "").split()
                assert attributes.get("aria-invalid") == "true"
    assert said <= {attributes.get("id") for _, attributes in shown.elements}
    return said


def value_of(text: str, name: str) -> str:
    """What stands in a field that one types into."""
    found = re.search(rf'<input type="text" id="{name}" name="{name}" value="([^"]*)"', text)
    assert found is not None
    return html.unescape(found[1])


# --- every page -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "what"),
    [
        pytest.param(status, what, id=f"{status}-{what}")
        for status in ("draft", "running", "stopped", "applied")
        for what in ("edit", "start", "ramp", "stop", "apply", "outcomes")
    ],
)
def test_a_page_is_whole_and_can_be_used_without_a_script_or_eyes_in_every_status(
    site: Any, name: str, status: str, what: str
) -> None:
    new(site, name, start="later" if status == "draft" else "now")
    if status in ("stopped", "applied"):
        post(site, path_of(name, "stop"))
    if status == "applied":
        post(site, path_of(name, "apply"), action="keep", confirm="true")
    assert item(site, name)["status"] == status
    whole(page(site, path_of(name, what)))


def test_the_form_is_whole_filled_in_and_refused(site: Any, name: str) -> None:
    whole(page(site, NEW))
    shown = page(
        site, f"{NEW}?control_model=alpha&control_version=production&treatment_model=beta&experiment_id={name}"
    )
    whole(shown)
    assert {"value": "alpha", "selected": None} in shown.all("option")
    assert next(one["value"] for one in shown.all("input") if one.get("name") == "control_version") == "production"
    whole(Page(new(site, "", block_s="x", namespace_start="y", alpha="z", mode="?", unit=HOSTILE).text))


def whole(shown: Page) -> None:
    assert shown.open == []
    assert shown.all("script") == []
    assert len(shown.all("h1")) == len(shown.all("main")) == 1
    ids = [attributes["id"] for _, attributes in shown.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    labelled = {attributes["for"] for attributes in shown.all("label") if "for" in attributes}
    for tag, attributes in shown.elements:
        assert "style" not in attributes
        assert not [key for key in attributes if key.startswith("on")]
        named = f"{attributes.get('aria-labelledby') or ''} {attributes.get('aria-describedby') or ''}".split()
        assert set(named) <= set(ids)
        if tag in ("input", "textarea", "select"):
            assert attributes.get("type") == "hidden" or attributes.get("id") in labelled, attributes
        if tag == "a" and (attributes["href"] or "").startswith("#"):
            assert attributes["href"] == "#content" or attributes["href"][1:] in ids
    for form in shown.all("form"):
        assert (form["method"], (form["action"] or "").startswith("/ui/")) == ("post", True)


@pytest.mark.parametrize("what", ["", "edit", "start", "ramp", "stop", "apply", "outcomes"])
def test_a_change_is_taken_from_this_servers_own_pages_only(site: Any, name: str, what: str) -> None:
    new(site, name)
    before = item(site, name)
    for headers in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://elsewhere"}):
        refused = site.client.post(path_of(name, what) if what else NEW, data={"experiment_id": name}, headers=headers)
        assert (refused.status_code, "this server's own pages only" in html.unescape(refused.text)) == (403, True)
    assert item(site, name) == before


@pytest.mark.parametrize("what", ["edit", "start", "ramp", "stop", "apply", "outcomes"])
def test_of_an_experiment_that_is_not_there_a_page_says_so(site: Any, what: str) -> None:
    typed = {"ramp": {"treatment_share": "0.1", "phase": "1"}, "apply": {"action": "keep"}}
    for answer in (
        site.client.get(path_of("nobody", what)),
        post(site, path_of("nobody", what), **typed.get(what, {})),
    ):
        assert (answer.status_code, "experiment nobody is not there" in answer.text) == (404, True)


def test_a_read_only_server_shows_every_page_without_a_form_and_refuses_every_change(
    site: Any, name: str, make_web: Callable[..., Any]
) -> None:
    running(site, name)
    before = item(site, name)
    reader = make_web(site.directory, read_only=True)
    for path in (NEW, *(path_of(name, what) for what in ("edit", "start", "ramp", "stop", "apply", "outcomes"))):
        shown = page(reader, path)
        assert shown.all("form") == []
        refused = post(reader, path)
        assert (refused.status_code, "read_only" in refused.text) == (403, True), path
    assert item(site, name) == before


# --- a new experiment -------------------------------------------------------------------------------------------------


def test_all_that_is_typed_is_set_up(site: Any, name: str) -> None:
    typed = {
        "mode": "shadow",
        "treatment_share": " 0.25 ",
        "unit": "symbol|time-block",
        "block_s": "1800",
        "horizon_s": "6e1",
        "deadline_at": "2099-12-31 12:00",
        "auto": "true",
        "policy": "sequential",
        "alpha": ".01",
        "min_samples": "250",
        "max_hours": "720",
        "namespace_name": "desk",
        "namespace_start": "0",
        "namespace_end": "0.5",
    }
    made = new(site, name, **typed)
    assert (made.status_code, made.headers["Location"]) == (303, f"/ui/experiments/{name}")
    found = item(site, name)
    assert {key: found[key] for key in ("status", "mode", "traffic_split", "unit", "block_s", "horizon_s", "auto")} == {
        "status": "draft", "mode": "shadow", "traffic_split": 0.75, "unit": "symbol|time-block",
        "block_s": 1800.0, "horizon_s": 60.0, "auto": True,
    }  # fmt: skip
    assert found["deadline_at"] == "2099-12-31T12:00:00Z"
    assert found["namespace"] == {"name": "desk", "start": 0.0, "end": 0.5}
    assert (found["control_model"], found["treatment_model"]) == ("alpha", "beta")
    changed = {key: value for key, value in found["policy"].items() if value != getattr(SequentialPolicy(), key, None)}
    assert changed == {"policy": "sequential", "alpha": 0.01, "min_samples": 250, "max_hours": 720.0}


def test_what_is_left_empty_is_what_the_api_takes_it_for(site: Any, name: str) -> None:
    left = {key: "" for key in FIELDS if key not in (*ARMS, "treatment_share", "mode", "unit")}
    assert new(site, name, **{**left, "experiment_id": name, "unit": "symbol|time-block"}).status_code == 303
    body = {**ARMS, "experiment_id": f"{name}-api", "start": False}
    assert site.client.post(ROOT, json=body).status_code == 201
    ours, apis = ({key: value for key, value in item(site, one).items() if key not in ("experiment_id", "created_at", "phases")} for one in (name, f"{name}-api"))  # fmt: skip
    assert ours == apis


def test_it_runs_at_once_where_that_is_chosen(site: Any, name: str) -> None:
    assert new(site, name, start="now").status_code == 303
    assert item(site, name)["status"] == "running"


def test_every_number_of_both_policies_has_its_field_default_and_limits(site: Any) -> None:
    text = site.client.get(NEW).text
    for field in {*SequentialPolicy.__struct_fields__, *ClassicPolicy.__struct_fields__}:
        hint = re.search(rf'id="{field}-hint">([^<]+)<', text)
        assert hint is not None, field
        least, most = SequentialPolicy.LIMITS[field]
        assert f"from {least:g} to {most:g}" in hint[1]
        assert len(hint[1]) > 50, "it says what it is for"


@pytest.mark.parametrize(("mode", "block_s"), [("split", 3600.0), ("shadow", 86400.0)])
def test_a_block_that_is_not_typed_is_the_modes_own(site: Any, name: str, mode: str, block_s: float) -> None:
    [shown] = [field for field in page(site, NEW).all("input") if field.get("name") == "block_s"]
    assert shown["value"] == ""
    assert new(site, name, mode=mode, unit="symbol|time-block", block_s=" ").status_code == 303
    assert item(site, name)["block_s"] == block_s


@pytest.mark.parametrize(
    ("typed", "fields"),
    [
        pytest.param({"experiment_id": ""}, {"experiment_id"}, id="no-name"),
        pytest.param({"experiment_id": HOSTILE}, {"experiment_id"}, id="a-name-of-markup-and-emoji"),
        pytest.param({"experiment_id": "é" * 300}, {"experiment_id"}, id="a-long-name"),
        pytest.param({"control_model": ""}, {"control_model"}, id="no-control"),
        pytest.param({"control_model": HOSTILE}, {"control_model"}, id="no-such-control"),
        pytest.param({"treatment_model": "gone"}, {"treatment_model"}, id="no-such-treatment"),
        pytest.param({"control_version": "nine"}, {"control_version"}, id="no-such-control-version"),
        pytest.param({"treatment_version": HOSTILE}, {"treatment_version"}, id="no-such-treatment-version"),
        pytest.param({"treatment_model": "alpha", "treatment_version": "nine"}, {"treatment_version"}, id="of-the-same-model"),
        pytest.param({"treatment_model": "alpha"}, {"treatment_version"}, id="the-same-version"),
        pytest.param({"mode": "sideways"}, {"mode"}, id="mode"),
        pytest.param({"unit": "moon"}, {"unit"}, id="unit"),
        pytest.param({"treatment_share": ""}, {"treatment_share"}, id="no-share"),
        pytest.param({"treatment_share": "-0.1"}, {"treatment_share"}, id="share-negative"),
        pytest.param({"treatment_share": "1.01"}, {"treatment_share"}, id="share-above-1"),
        pytest.param({"treatment_share": "NaN"}, {"treatment_share"}, id="share-nan"),
        pytest.param({"treatment_share": "1e999"}, {"treatment_share"}, id="share-infinite"),
        pytest.param({"treatment_share": "0,1"}, {"treatment_share"}, id="share-with-a-comma"),
        pytest.param({"treatment_share": "١"}, {"treatment_share"}, id="share-in-other-digits"),
        pytest.param({"block_s": "0"}, {"block_s"}, id="block-of-nothing"),
        pytest.param({"horizon_s": "-1"}, {"horizon_s"}, id="horizon-negative"),
        pytest.param({"deadline_at": "tomorrow"}, {"deadline_at"}, id="deadline-in-words"),
        pytest.param({"deadline_at": "2026-13-40 25:61"}, {"deadline_at"}, id="deadline-that-is-no-day"),
        pytest.param({"deadline_at": "0001-01-01 00:00+14:00"}, {"deadline_at"}, id="deadline-before-time"),
        pytest.param({"deadline_at": "2020-01-01 00:00", "start": "now"}, {"deadline_at"}, id="deadline-over"),
        pytest.param({"auto": "maybe"}, {"auto"}, id="auto"),
        pytest.param({"policy": "bayes"}, {"policy"}, id="policy"),
        pytest.param({"alpha": "2"}, {"alpha"}, id="a-number-out-of-limits"),
        pytest.param({"min_samples": "100.5"}, {"min_samples"}, id="half-a-sample"),
        pytest.param({"max_hours": "1"}, {"max_hours"}, id="an-end-before-the-minimum"),
        pytest.param({"policy": "classic", "planned_units": "900"}, {"planned_units"}, id="a-number-of-the-other-policy"),
        pytest.param({"alpha": "inf", "block_s": "x", "experiment_id": ""}, {"alpha", "block_s", "experiment_id"}, id="many"),
        pytest.param({"namespace_start": "0.5"}, {"namespace_name", "namespace_end"}, id="a-slice-of-nothing"),
        pytest.param({"namespace_name": "a b", "namespace_start": "0", "namespace_end": "1"}, {"namespace_name"}, id="namespace"),
        pytest.param({"namespace_name": "a", "namespace_start": "1", "namespace_end": "0"}, {"namespace_start"}, id="slice-backwards"),
        pytest.param({"namespace_name": "a\0b", "namespace_start": "0", "namespace_end": "1"}, {"namespace_name"}, id="nul"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_beside_its_field_and_all_that_was_typed_stays(
    site: Any, name: str, typed: dict[str, str], fields: set[str]
) -> None:
    n_before = len(site.json(ROOT)["items"])
    refused = new(site, name, **{"horizon_s": "77", **typed})
    assert 400 <= refused.status_code < 500
    assert wrong_fields(refused.text) == fields
    for field in (
        "experiment_id",
        "treatment_version",
        "treatment_share",
        "horizon_s",
        "deadline_at",
        "alpha",
        "namespace_name",
    ):
        assert (
            value_of(refused.text, field)
            == {**FIRST_TYPED, **ARMS, "experiment_id": name, "horizon_s": "77", **typed}[field]
        )
    assert "<script" not in refused.text
    details = re.search(r'<details class="field" id="numbers"( open)?>', refused.text)
    is_of_the_policy = bool(fields & {"policy", *SequentialPolicy.__struct_fields__})
    assert details is not None
    assert not is_of_the_policy or details[1]
    assert len(site.json(ROOT)["items"]) == n_before


def test_a_field_that_the_form_has_not_or_that_comes_twice_or_is_huge_is_refused(site: Any, name: str) -> None:
    assert new(site, name, traffic_split="0.5").status_code == 400
    assert new(site, name, alpha=["0.1", "0.2"]).status_code == 400
    assert new(site, name, alpha=(io.BytesIO(b"0.1"), "alpha")).status_code == 400
    assert new(site, name, control_version="x" * (1 << 20)).status_code in (404, 413)
    assert site.client.get(f"{ROOT}/{name}").status_code == 404


def test_a_form_that_is_sent_twice_says_that_the_name_is_taken_and_leads_to_it(site: Any, name: str) -> None:
    assert new(site, name, start="now").status_code == 303
    again = new(site, name, start="now")
    assert (again.status_code, wrong_fields(again.text)) == (409, {"experiment_id"})
    assert path_of(name) in [attributes.get("href") for attributes in Page(again.text).all("a")]
    other = new(site, f"{name}-other", start="now")
    assert (other.status_code, wrong_fields(other.text)) == (409, {"control_model"})
    assert site.client.get(f"{ROOT}/{name}-other").status_code == 404


# --- a draft ----------------------------------------------------------------------------------------------------------


def fields_on(site: Any, path: str) -> dict[str, str]:
    """What a browser would send for the form as it is shown."""
    text = site.client.get(path).text
    shown = Page(text)
    sent = {
        one["name"]: one.get("value") or ""
        for one in shown.all("input")
        if one.get("type") in ("text", "hidden") or "checked" in one
    }
    for select in re.findall(r'<select id="([^"]+)".*?</select>', text, re.DOTALL):
        part = re.search(rf'<select id="{select}".*?</select>', text, re.DOTALL)
        assert part is not None
        sent[select] = html.unescape(re.findall(r'<option value="([^"]*)" selected', part[0])[0])
    return sent  # type: ignore[return-value]


def test_a_draft_that_is_saved_as_it_was_shown_is_not_changed_in_anything(site: Any, name: str) -> None:
    body = {
        **ARMS, "experiment_id": name, "start": False, "traffic_split": 0.9, "mode": "shadow", "unit": "unit_id", "block_s": 0.1, "horizon_s": 12.345678,
        "namespace": {"name": "n", "start": 0.1, "end": 0.30000000000000004}, "auto": True, "deadline_at": "2099-01-02T03:04:05.678901Z",
        "policy": {"policy": "classic", "alpha": 0.011, "min_samples": 7, "max_hours": 1000.5},
    }  # fmt: skip
    assert site.client.post(ROOT, json=body).status_code == 201
    before = item(site, name)
    sent = fields_on(site, path_of(name, "edit"))
    saved = post(site, path_of(name, "edit"), **sent)
    assert (saved.status_code, saved.headers["Location"]) == (303, path_of(name))
    assert item(site, name) == before
    again = post(site, path_of(name, "edit"), **{**sent, "auto": "", "treatment_share": "0.2"})
    assert again.status_code == 303
    assert item(site, name) == {
        **before,
        "auto": False,
        "traffic_split": 0.8,
        "phases": [{**before["phases"][0], "traffic_split": 0.8}],
    }
    twice = post(site, path_of(name, "edit"), **{**sent, "auto": "", "treatment_share": "0.2"})
    assert twice.status_code == 303, "it is so already"


def test_what_somebody_else_changed_meanwhile_is_shown_before_it_is_overwritten(site: Any, name: str) -> None:
    new(site, name)
    sent = fields_on(site, path_of(name, "edit"))
    assert site.client.patch(f"{ROOT}/{name}", json={"traffic_split": 0.7}).status_code == 200
    refused = post(site, path_of(name, "edit"), **{**sent, "horizon_s": "5"})
    assert refused.status_code == 412
    assert "somebody else changed it meanwhile" in refused.text
    assert (value_of(refused.text, "horizon_s"), value_of(refused.text, "treatment_share")) == ("5", "0.1")
    assert item(site, name)["traffic_split"] == 0.7
    seen = re.search(r'name="seen" value="([^"]+)"', refused.text)
    assert seen is not None
    assert post(site, path_of(name, "edit"), **{**sent, "horizon_s": "5", "seen": seen[1]}).status_code == 303
    assert (item(site, name)["horizon_s"], item(site, name)["traffic_split"]) == (5.0, 0.9)


def test_what_has_started_is_not_changed_by_a_form_that_was_open(site: Any, name: str) -> None:
    new(site, name)
    sent = fields_on(site, path_of(name, "edit"))
    assert post(site, path_of(name, "start")).status_code == 303
    refused = post(site, path_of(name, "edit"), **{**sent, "horizon_s": "5"})
    assert (refused.status_code, "It is running" in refused.text) == (409, True)
    assert item(site, name)["horizon_s"] == 0.0


def test_a_draft_is_refused_beside_its_field_too(site: Any, name: str) -> None:
    new(site, name)
    sent = fields_on(site, path_of(name, "edit"))
    refused = post(site, path_of(name, "edit"), **{**sent, "alpha": "2", "treatment_version": "nine"})
    assert (refused.status_code, wrong_fields(refused.text), value_of(refused.text, "alpha")) == (400, {"alpha"}, "2")


# --- start, ramp, stop ------------------------------------------------------------------------------------------------


def test_a_draft_is_started_once_and_stopped_once_however_often_the_button_is_pressed(site: Any, name: str) -> None:
    new(site, name)
    started = post(site, path_of(name, "start"))
    assert (started.status_code, started.headers["Location"]) == (303, path_of(name))
    began = item(site, name)["started_at"]
    again = post(site, path_of(name, "start"))
    assert (again.status_code, "It is running already" in again.text) == (409, True)
    assert item(site, name)["started_at"] == began
    assert post(site, path_of(name, "stop")).headers["Location"] == path_of(name)
    ended = item(site, name)["stopped_at"]
    assert post(site, path_of(name, "stop")).status_code == 303
    assert item(site, name)["stopped_at"] == ended
    assert "It has ended already" in site.client.get(path_of(name, "stop")).text
    late = post(site, path_of(name, "start"))
    assert (late.status_code, "It has ended already" in late.text) == (409, True)


def test_a_second_experiment_on_one_model_is_not_started_and_the_page_says_which_runs(site: Any, name: str) -> None:
    running(site, name)
    new(site, f"{name}-second")
    refused = post(site, path_of(f"{name}-second", "start"))
    assert (refused.status_code, f"{name}, which is running" in refused.text) == (409, True)
    assert item(site, f"{name}-second")["status"] == "draft"


def test_a_draft_whose_deadline_is_over_is_not_started_and_the_page_says_why(site: Any, name: str) -> None:
    assert new(site, name, deadline_at="2020-01-01 00:00").status_code == 303
    refused = post(site, path_of(name, "start"))
    assert (refused.status_code, "deadline_at: 2020-01-01" in refused.text) == (400, True)
    whole(Page(refused.text))
    assert path_of(name, "edit") in [attributes.get("href") for attributes in Page(refused.text).all("a")]
    assert item(site, name)["status"] == "draft"


def test_a_share_is_ramped_up_and_down_only_with_all_units_drawn_anew(site: Any, name: str) -> None:
    running(site, name, 0.25)
    ramped = post(site, path_of(name, "ramp"), treatment_share="0.5", phase="1")
    assert (ramped.status_code, ramped.headers["Location"]) == (303, path_of(name))
    refused = post(site, path_of(name, "ramp"), treatment_share="0.25", phase="2")
    assert (refused.status_code, wrong_fields(refused.text)) == (400, {"treatment_share"})
    assert "it is 0.5 now; with 0.25 treated units would go back" in refused.text
    assert value_of(refused.text, "treatment_share") == "0.25"
    assert post(site, path_of(name, "ramp"), treatment_share="0.25", phase="2", redraw="true").status_code == 303
    assert [(one["traffic_split"], one["salt"]) for one in item(site, name)["phases"]] == [
        (0.75, f"{name}:1"), (0.5, f"{name}:1"), (0.75, f"{name}:3"),
    ]  # fmt: skip


def test_a_ramp_that_is_sent_twice_makes_one_phase(site: Any, name: str) -> None:
    running(site, name, 0.25)
    for redraw, share, phase, status in (("", "0.5", "1", 303), ("true", "0.75", "2", 412)):
        sent = {"treatment_share": share, "phase": phase, "redraw": redraw}
        assert post(site, path_of(name, "ramp"), **sent).status_code == 303
        n_phases = len(item(site, name)["phases"])
        again = post(site, path_of(name, "ramp"), **sent)
        assert again.status_code == status
        assert len(item(site, name)["phases"]) == n_phases
    assert "phase 3, where the treatment has 0.75 of the units" in again.text


@pytest.mark.parametrize("share", ["", "NaN", "-0.1", "1.5", "1e999", "half", "0.1\0", "💥", "9" * 400])
def test_a_share_that_is_none_is_refused_beside_its_field(site: Any, name: str, share: str) -> None:
    running(site, name)
    refused = post(site, path_of(name, "ramp"), treatment_share=share, phase="1")
    assert (refused.status_code, wrong_fields(refused.text)) == (400, {"treatment_share"})
    assert len(item(site, name)["phases"]) == 1


def test_what_does_not_run_has_no_ramp(site: Any, name: str) -> None:
    new(site, name)
    refused = post(site, path_of(name, "ramp"), treatment_share="0.5", phase="1")
    assert (refused.status_code, "only what runs is ramped" in refused.text) == (409, True)
    broken = post(site, path_of(name, "ramp"), treatment_share="0.5", phase="one")
    assert (broken.status_code, "phase: it is not as the page had it" in broken.text) == (400, True)
    whole(Page(broken.text))


# --- apply ------------------------------------------------------------------------------------------------------------


def test_what_is_not_recommended_is_applied_only_where_that_is_confirmed_and_once(site: Any, name: str) -> None:
    running(site, name)
    text = site.client.get(path_of(name, "apply")).text
    assert "Recommended: nothing yet" in text
    assert "checked" not in text, "nothing is chosen for anybody"
    reasons = site.json(f"{ROOT}/{name}/analysis")["recommendation"]["reasons"]
    assert reasons
    assert all(
        html.escape(reason, quote=False) in html.unescape(text) or reason in html.unescape(text) for reason in reasons
    )
    refused = post(site, path_of(name, "apply"), action="promote")
    assert (refused.status_code, wrong_fields(refused.text)) == (409, {"confirm"})
    assert item(site, name)["status"] == "running"
    done = post(site, path_of(name, "apply"), action="keep", confirm="true")
    assert (done.status_code, done.headers["Location"]) == (303, path_of(name))
    assert (item(site, name)["status"], item(site, name)["applied"]) == ("applied", "keep")
    again = post(site, path_of(name, "apply"), action="promote", confirm="true")
    assert (again.status_code, "It was applied already: the control was kept" in again.text) == (409, True)
    assert item(site, name)["applied"] == "keep"


@pytest.mark.parametrize("action", ["", "destroy", HOSTILE])
def test_an_action_that_is_none_is_refused_beside_the_choice(site: Any, name: str, action: str) -> None:
    running(site, name)
    refused = post(site, path_of(name, "apply"), action=action, confirm="true")
    assert (refused.status_code, wrong_fields(refused.text)) == (400, {"action"})
    assert item(site, name)["status"] == "running"


def test_a_draft_has_no_result(site: Any, name: str) -> None:
    new(site, name)
    assert "there is no result" in site.client.get(path_of(name, "apply")).text
    assert post(site, path_of(name, "apply"), action="keep", confirm="true").status_code == 409
    assert item(site, name)["status"] == "draft"


# --- outcomes ---------------------------------------------------------------------------------------------------------


def predicted(site: Any, n: int) -> list[str]:
    one = {"symbol": "BTC/USDT", "features": ROW, "model_name": "alpha"}
    answer = site.client.post("/predict/batch", json={"requests": [one] * n})
    return [prediction["prediction_id"] for prediction in answer.json["predictions"]]


def hand_in(site: Any, name: str, content: bytes | None = None, file_name: str = "o.csv", **typed: str) -> Any:
    data = {"pasted": "", **typed, "file": (io.BytesIO(content or b""), file_name if content is not None else "")}
    return site.client.post(path_of(name, "outcomes"), data=data, headers=OURS, content_type="multipart/form-data")


def test_a_file_of_outcomes_is_reported_by_row_and_may_be_sent_again(site: Any, name: str) -> None:
    running(site, name)
    ids = predicted(site, 3)
    lines = [
        f"{ids[0]},0.01,",
        "",
        f"{ids[1]},,MOON",
        "nobody<script>alert(1)</script>,0.1,",
        f"{ids[2]},,SELL",
        f"{ids[0]},0.01,",
    ]
    content = "\n".join(["prediction_id,realized_return,label", *lines]).encode()
    first = hand_in(site, name, content)
    assert first.status_code == 200
    whole(Page(first.text))
    assert "<strong>2 added</strong>, 1 known already, 2 refused" in first.text
    assert re.findall(r'<th scope="row" class="number">(\d+)</th>', first.text) == ["2", "3"]
    assert "<script" not in first.text
    again = hand_in(site, name, content)
    assert "<strong>0 added</strong>, 3 known already, 2 refused" in again.text
    assert site.json(f"{ROOT}/{name}/analysis")["progress"]


def test_outcomes_come_as_parquet_as_a_json_file_and_pasted(site: Any, name: str, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    running(site, name)
    ids = predicted(site, 4)
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"prediction_id": ids[:2], "realized_return": [0.1, -0.2]}), file)
    assert "<strong>2 added</strong>" in hand_in(site, name, file.getvalue(), "named-badly.csv").text
    one = {"prediction_id": ids[2], "label": "BUY"}
    assert "<strong>1 added</strong>" in hand_in(site, name, json.dumps([one]).encode(), "o.JSON").text
    pasted = {"prediction_id": ids[3], "realized_return": 0.5}
    assert "<strong>1 added</strong>" in hand_in(site, name, pasted="\r\n" + json.dumps(pasted) + "\r\n").text


@pytest.mark.parametrize(
    ("content", "file_name", "pasted", "field"),
    [
        pytest.param(None, "", "", "file", id="nothing"),
        pytest.param(b"", "empty.csv", "", "file", id="an-empty-file"),
        pytest.param(b"prediction_id,label\nx,BUY\n", "o.csv", "[]", "pasted", id="both"),
        pytest.param(b"a,b\n1,2\n", "o.csv", "", "file", id="other-columns"),
        pytest.param(b"\xff\xfe\x00", "o.csv", "", "file", id="no-text"),
        pytest.param(b"PAR1 and no more", "o.parquet", "", "file", id="a-torn-parquet"),
        pytest.param(b"{", "o.json", "", "file", id="torn-json"),
        pytest.param(None, "", '{"prediction_id": "x", "realized_return": NaN}', "pasted", id="nan"),
        pytest.param(None, "", '{"prediction_id": "x", "realized_return": 1e999}', "pasted", id="too-large"),
        pytest.param(None, "", "[]", "pasted", id="an-empty-list"),
        pytest.param(None, "", '[{"prediction_id": "x", "price": 1}]', "pasted", id="an-unknown-field"),
        pytest.param(None, "", "[" * 100, "pasted", id="deep"),
        pytest.param(None, "", f'"{HOSTILE}', "pasted", id="markup"),
    ],
)
def test_outcomes_that_cannot_be_read_are_refused_whole_beside_their_field(
    site: Any, name: str, content: bytes | None, file_name: str, pasted: str, field: str
) -> None:
    running(site, name)
    refused = hand_in(site, name, content, file_name, pasted=pasted)
    assert (refused.status_code, wrong_fields(refused.text)) == (400, {field})
    area = re.search(r"<textarea[^>]*>(.*?)</textarea>", refused.text, re.DOTALL)
    assert area is not None
    assert html.unescape(area[1]) == pasted
    assert "<script" not in refused.text


def test_two_files_or_a_field_that_the_form_has_not_are_refused(site: Any, name: str) -> None:
    running(site, name)
    two = {"pasted": "", "file": [(io.BytesIO(b"x"), "a.csv"), (io.BytesIO(b"y"), "b.csv")]}
    path = path_of(name, "outcomes")
    assert site.client.post(path, data=two, headers=OURS, content_type="multipart/form-data").status_code == 400
    assert post(site, path, pasted="{}", price="1").status_code == 400
    body = b"x" * (site.store.settings.max_body_bytes + 1)
    too_large = site.client.post(path, data=body, headers=OURS, content_type="multipart/form-data; boundary=b")
    assert (too_large.status_code, "max_body_bytes" in too_large.text) == (413, True)
