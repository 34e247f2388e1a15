"""The registry over HTTP: what is handed in and refused, stages, and what every other route says of registered models."""

import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from mmserver.catalog.catalog import Actor
from mmserver.catalog.history import append_serving
from mmserver.catalog.registering import register_model
from mmserver.storage.audit import AuditEntry, list_audit
from mmserver.storage.tables import ModelRow, VersionRow
from mmserver.web.current import MODEL_READER_KEY
from mmserver.web.registry_bodies import cursor_from_name

ROOT = "/api/ml/registry/models"
ITEM_FIELDS = [
    "name", "version", "stage", "model_type", "description", "metrics", "training_params", "tags", "kind", "n_features",
    "input_shape", "factor_count", "size_mb", "size_bytes", "sha256", "derived_from", "parity", "optimizations",
    "created_at", "updated_at",
]  # fmt: skip
FACTORS = ["momentum", "volume", "spread"]
ROW = [0.5, -0.25, 1.0]
_numbers = itertools.count()


@pytest.fixture(scope="module")
def models(xgboost_text: Callable[[int, int], bytes]) -> list[bytes]:
    """Three regressors of three inputs."""
    return [xgboost_text(3, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def site(make_web: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Registrations are told apart by their models' names, so that tests can share it."""
    return make_web(tmp_path_factory.mktemp("registry"), max_artifact_bytes=200_000)


@pytest.fixture
def name() -> str:
    """A model's name that no other test has."""
    return f"hybrid-{next(_numbers)}"


def upload(site: Any, content: bytes | list[tuple[bytes, str]], headers: Any = None, **fields: Any) -> Any:
    """Upload a file, or several with their names."""
    files = [(content, "model.json")] if isinstance(content, bytes) else content
    data = {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}
    data["file"] = [(io.BytesIO(data_), file_name) for data_, file_name in files]
    return site.client.post(ROOT, data=data, headers=headers, content_type="multipart/form-data")


def registered(site: Any, name: str, version: str, content: bytes, **fields: Any) -> Any:
    response = upload(site, content, name=name, version=version, **fields)
    assert response.status_code == 201, response.text
    return response.json


def refused(response: Any, status: int, code: str, loc: str | None = None) -> str:
    """The detail of a refusal."""
    assert (response.status_code, response.json["code"]) == (status, code), response.text
    if loc is not None:
        assert [error["loc"] for error in response.json["errors"]] == [loc]
    detail: str = response.json["detail"]
    return detail


def assert_nothing_of(site: Any, name: str) -> None:
    assert site.client.get(f"{ROOT}/{name}").status_code == 404
    assert audit(site, name) == []


def audit(site: Any, name: str) -> list[AuditEntry]:
    with site.store.database.read() as connection:
        return [entry for entry in list_audit(connection, limit=1000) if entry.target == name]


# --- handing in -------------------------------------------------------------------------------------------------------


def test_an_upload_is_registered_served_and_audited(site: Any, name: str, models: list[bytes]) -> None:
    said = {"metrics": {"ic": 0.031, "n": 3}, "training_params": {"eta": [0.1, None]}, "tags": {"desk": "fx"}}
    response = upload(
        site,
        models[0],
        {"X-Request-ID": f"id-{name}"},
        name=name,
        version="1.0.0",
        description="Ä",
        factors=FACTORS,
        **said,
    )
    assert response.status_code == 201, response.text
    assert response.headers["Location"] == f"{ROOT}/{name}/1.0.0"
    item = response.json
    assert list(item) == ITEM_FIELDS
    assert {key: item[key] for key in said} == said
    assert (item["stage"], item["model_type"], item["kind"], item["description"]) == ("None", "xgboost", "xgboost", "Ä")
    assert (item["n_features"], item["factor_count"], item["size_bytes"]) == (3, 3, len(models[0]))
    assert site.json(response.headers["Location"]) == item
    answer = site.client.post("/predict", json={"model_name": name, "symbol": "ANY", "features": ROW}).json
    assert (answer["model_name"], answer["model_version"]) == (name, "1.0.0")
    [entry] = audit(site, name)
    assert (entry.action, entry.request_id) == ("version.registered", f"id-{name}")
    assert entry.actor == "anonymous@127.0.0.1"


def test_the_very_same_again_is_no_error_and_other_content_is_a_conflict(
    site: Any, name: str, models: list[bytes]
) -> None:
    first = registered(site, name, "1.0.0", models[0])
    again = upload(site, models[0], name=name, version="1.0.0")
    assert (again.status_code, again.json) == (200, first)
    said = refused(upload(site, models[0], name=name, version="1.0.0", metrics={"ic": 0.2}), 409, "version_conflict")
    assert "other metrics (ic)" in said
    assert again.headers["Location"] == f"{ROOT}/{name}/1.0.0"
    refused(upload(site, models[1], name=name, version="1.0.0"), 409, "version_conflict")
    assert site.json(f"{ROOT}/{name}/1.0.0") == first


def test_a_label_with_build_metadata_has_an_address(site: Any, name: str, models: list[bytes]) -> None:
    registered(site, name, "1.0.0", models[0])
    response = upload(site, models[1], name=name, version="1.0.0+int8", derived_from="1.0.0")
    assert response.headers["Location"] == f"{ROOT}/{name}/1.0.0%2Bint8"
    assert site.json(response.headers["Location"])["derived_from"] == "1.0.0"


def test_the_hash_of_the_file_is_checked_against_what_arrived(site: Any, name: str, models: list[bytes]) -> None:
    expected = hashlib.sha256(models[0]).hexdigest()
    detail = refused(
        upload(site, models[0][:-1] + b" ", name=name, version="1.0.0", sha256=expected),
        400,
        "request_invalid",
        "sha256",
    )
    assert expected not in detail
    assert_nothing_of(site, name)
    registered(site, name, "1.0.0", models[0], sha256=expected.upper())


@pytest.mark.parametrize(
    "file_name",
    [
        pytest.param("../model.json", id="above"),
        pytest.param("/etc/model.json", id="absolute"),
        pytest.param("..\\\\model.json", id="above as on Windows"),
        pytest.param("a/../../model.json", id="above in the middle"),
        pytest.param("model\x00.json", id="NUL"),
        pytest.param("a" * 300 + ".json", id="long"),
        pytest.param("..", id="dots"),
        pytest.param("", id="empty"),
    ],
)
def test_a_file_s_name_that_leads_elsewhere_is_refused(
    site: Any, name: str, models: list[bytes], file_name: str
) -> None:
    head = f'--x\r\nContent-Disposition: form-data; name="file"; filename="{file_name}"\r\n\r\n'.encode()
    fields = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (key, value)
        for key, value in ((b"name", name.encode()), (b"version", b"1.0.0"))
    )
    body = fields + head + models[0] + b"\r\n--x--\r\n"
    response = site.client.post(ROOT, data=body, content_type="multipart/form-data; boundary=x")
    refused(response, 400, "request_invalid", "file")
    assert_nothing_of(site, name)


def test_files_that_do_not_fit_together_are_refused(site: Any, name: str, models: list[bytes]) -> None:
    two = [(models[0], "model.json"), (models[1], "model.json")]
    refused(upload(site, two, name=name, version="1.0.0"), 400, "request_invalid", "file")
    refused(upload(site, b"", name=name, version="1.0.0"), 400, "request_invalid", "file")
    refused(upload(site, [], name=name, version="1.0.0"), 400, "request_invalid", "file")
    refused(upload(site, [(models[0], "model.xyz")], name=name, version="1.0.0"), 400, "request_invalid", "file")
    other = {"name": name, "version": "1.0.0", "model": (io.BytesIO(models[0]), "model.json")}
    refused(site.client.post(ROOT, data=other), 400, "request_invalid", "model")
    assert_nothing_of(site, name)


@pytest.mark.parametrize(
    ("field", "value", "loc"),
    [
        pytest.param("version", "latest", None, id="a reserved word"),
        pytest.param("version", "Production", None, id="a stage"),
        pytest.param("version", "1.0", None, id="no semantic version"),
        pytest.param("name", "a/b", None, id="a name that no address has"),
        pytest.param("metrics", '{"ic": NaN}', "metrics", id="not a number"),
        pytest.param("metrics", '{"ic": "high"}', "metrics.ic", id="a metric that is text"),
        pytest.param("metrics", "[1]", "metrics", id="metrics in a list"),
        pytest.param("tags", '{"a": 1}', "tags.a", id="a tag that is a number"),
        pytest.param("training_params", "{", "training_params", id="half an object"),
        pytest.param("training_params", '{"a": 1, "a": 2}', "training_params", id="a name twice"),
        pytest.param("options", "[" * 100 + "]" * 100, "options", id="deep"),
        pytest.param("factors", '"a"', "factors", id="factors in a text"),
        pytest.param("derived_from", "3.0.0", "derived_from", id="derived from what there is not"),
        pytest.param("model_type", "a\nb", "model_type", id="a type of two lines"),
    ],
)
def test_a_field_that_does_not_fit_is_named(
    site: Any, name: str, models: list[bytes], field: str, value: str, loc: str | None
) -> None:
    response = upload(site, models[0], **{"name": name, "version": "1.0.0", field: value})
    assert response.status_code == 400, response.text
    if loc is not None:
        refused(response, 400, "request_invalid", loc)
    assert_nothing_of(site, name)


def test_a_field_that_is_missing_twice_or_not_utf8_is_named(site: Any, name: str, models: list[bytes]) -> None:
    refused(upload(site, models[0], version="1.0.0"), 400, "request_invalid", "name")
    files = {"file": (io.BytesIO(models[0]), "model.json")}
    twice = {"name": [name, name], "version": "1.0.0", **files}
    refused(site.client.post(ROOT, data=twice), 400, "request_invalid", "name")
    body = b'--x\r\nContent-Disposition: form-data; name="version"\r\n\r\n\xff\r\n--x\r\nContent-Disposition: form-data; name="file"; filename="m.json"\r\n\r\n{}\r\n--x--\r\n'
    response = site.client.post(ROOT, data=body, content_type="multipart/form-data; boundary=x")
    refused(response, 400, "request_invalid", "version")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        pytest.param(b"x", "multipart/form-data", id="no boundary"),
        pytest.param(b"x", "multipart/form-data; boundary=" + "x" * 201, id="a long boundary"),
        pytest.param(b"x", "multipart/form-data; boundary=x", id="no part"),
        pytest.param(b"", "multipart/form-data; boundary=x", id="nothing"),
        pytest.param(b"--x--\r\n", "multipart/form-data; boundary=x", id="only the end"),
        pytest.param(b"--x\r\n\r\nvalue\r\n--x--\r\n", "multipart/form-data; boundary=x", id="a part without a head"),
        pytest.param(
            b"--x\r\nContent-Disposition: form-data\r\n\r\nvalue\r\n--x--\r\n", "multipart/form-data; boundary=x",
            id="a part without a name",
        ),
        pytest.param(
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="m.json"\r\n\r\n{"a": 1}',
            "multipart/form-data; boundary=x", id="cut off in a part",
        ),
        pytest.param(b"--x\r\nX: " + b"y" * 3_000_000, "multipart/form-data; boundary=x", id="an endless head"),
        pytest.param(
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 2000 + b"--x--\r\n",
            "multipart/form-data; boundary=x", id="many parts",
        ),
        pytest.param(
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"1" * 1_200_000 + b"\r\n--x--\r\n",
            "multipart/form-data; boundary=x", id="a huge field",
        ),
    ],
)  # fmt: skip
def test_a_body_that_is_no_whole_upload_is_refused(site: Any, body: bytes, content_type: str) -> None:
    response = site.client.post(ROOT, data=body, content_type=content_type)
    assert response.status_code in (400, 413), response.text
    assert response.json["code"] in ("request_invalid", "upload_too_large")


def test_files_of_just_the_limit_are_read_and_a_byte_more_is_not(site: Any, name: str) -> None:
    limit = site.store.settings.max_artifact_bytes
    detail = refused(upload(site, b" " * limit, name=name, version="1.0.0"), 400, "artifact_invalid")
    assert "max_artifact_bytes" not in detail
    detail = refused(upload(site, b" " * (limit + 1), name=name, version="1.0.0"), 413, "upload_too_large")
    assert "max_artifact_bytes" in detail
    assert str(limit) in detail
    two = [(b" " * limit, "model.json"), (b" ", "more.bin")]
    refused(upload(site, two, name=name, version="1.0.0"), 413, "upload_too_large")
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="m.json"\r\n\r\n'
    response = site.client.post(
        ROOT, data=head + bytes(limit + (2 << 20)), content_type="multipart/form-data; boundary=x"
    )
    refused(response, 413, "upload_too_large")


def test_a_model_that_is_cut_off_is_refused_and_the_one_before_goes_on(
    site: Any, name: str, models: list[bytes]
) -> None:
    registered(site, name, "1.0.0", models[0])
    refused(upload(site, models[1][: len(models[1]) // 2], name=name, version="1.1.0"), 400, "artifact_invalid")
    assert site.json(f"{ROOT}/{name}")["latest_version"] == "1.0.0"


def test_another_site_s_page_cannot_upload(site: Any, name: str, models: list[bytes]) -> None:
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        refused(upload(site, models[0], headers, name=name, version="1.0.0"), 403, "cross_site")
    assert_nothing_of(site, name)


def test_a_read_only_instance_registers_nothing(
    make_web: Callable[..., Any], tmp_path: Path, models: list[bytes]
) -> None:
    made = make_web(tmp_path / "data", read_only=True)
    refused(upload(made, models[0], name="x", version="1.0.0"), 403, "read_only")
    assert made.app.extensions[MODEL_READER_KEY]._made is None


# --- files on the server ----------------------------------------------------------------------------------------------


@pytest.fixture
def file(site: Any, name: str, models: list[bytes]) -> Path:
    """A model's file on the server."""
    path: Path = site.directory / name / "model.json"
    path.parent.mkdir()
    path.write_bytes(models[0])
    return path


def test_a_file_on_the_server_is_registered_by_its_path(site: Any, name: str, file: Path, models: list[bytes]) -> None:
    said = {"name": name, "version": "1.0.0", "factors": FACTORS, "metrics": {"ic": 0.1}}
    response = site.client.post(ROOT, json={**said, "path": str(file), "unheard_of": 1})
    assert response.status_code == 201, response.text
    same = upload(site, models[0], **said)
    assert (same.status_code, same.json) == (200, response.json)


def test_a_path_that_cannot_be_read_is_refused(site: Any, name: str, file: Path) -> None:
    def post(path: object, **more: Any) -> Any:
        return site.client.post(ROOT, json={"name": name, "version": "1.0.0", "path": path, **more})

    refused(post("model.json"), 400, "request_invalid", "path")
    refused(post(str(file) + ".none"), 400, "request_invalid", "path")
    refused(post(str(file / "x")), 400, "request_invalid", "path")
    refused(post(1), 400, "request_invalid", "path")
    refused(post(str(file.parent)), 400, "artifact_invalid")
    refused(post(str(file), sha256="0" * 64), 400, "request_invalid", "sha256")
    refused(post(str(file), other_paths=[str(file) + ".none"]), 400, "request_invalid", "other_paths[0]")
    refused(post(str(file), other_paths=[str(file)]), 400, "request_invalid", "other_paths[0]")
    large = file.with_name("large.json")
    large.write_bytes(bytes(site.store.settings.max_artifact_bytes + 1))
    refused(post(str(large)), 413, "upload_too_large")
    pipe = file.with_name("pipe.json")
    os.mkfifo(pipe)
    refused(post(str(pipe)), 400, "artifact_invalid")
    assert_nothing_of(site, name)


def test_a_path_outside_of_the_allowed_roots_is_refused(
    make_web: Callable[..., Any], tmp_path: Path, models: list[bytes]
) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    outside = tmp_path / "model.json"
    outside.write_bytes(models[0])
    (allowed / "link.json").symlink_to(outside)
    made = make_web(tmp_path / "data", artifact_roots=(allowed,))
    for path in (outside, allowed / "link.json", allowed / ".." / "model.json"):
        response = made.client.post(ROOT, json={"name": "x", "version": "1.0.0", "path": str(path)})
        refused(response, 400, "outside_roots")


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(site: Any, name: str, models: list[bytes]) -> str:
    """A model with versions 1.9.0, 1.10.0-rc.1 and 1.10.0, registered in another order."""
    for at, version in enumerate(("1.10.0", "1.9.0", "1.10.0-rc.1")):
        registered(site, name, version, models[at], metrics={"ic": at / 10}, training_params={"seed": at})
    return name


def test_the_latest_version_is_the_one_that_is_served_in_every_answer(site: Any, three: str) -> None:
    with site.store.database.write() as connection:
        row = connection.execute(
            select(VersionRow).join(ModelRow, ModelRow.id == VersionRow.model_id)
            .with_only_columns(VersionRow.id, VersionRow.model_id)
            .where(ModelRow.name == three, VersionRow.label == "1.9.0")
        ).one()  # fmt: skip
        append_serving(connection, model_id=row.model_id, version_id=row.id, version_label="1.9.0",
                       since="2027-01-01T00:00:00.000000Z", reason="promoted")  # fmt: skip
    site.store.reload_model(three)
    listed = {item["name"]: item["latest_version"] for item in site.json(ROOT)["items"]}
    assert site.json(f"{ROOT}/{three}")["latest_version"] == listed[three] == "1.9.0"
    assert site.json(f"{ROOT}/{three}/latest")["version"] == "1.9.0"


def test_versions_come_newest_first_in_the_order_of_semantic_versions(site: Any, three: str) -> None:
    found = site.json(f"{ROOT}/{three}")
    assert list(found) == ["name", "latest_version", "production_version", "staging_version", "versions"]
    assert [item["version"] for item in found["versions"]] == ["1.10.0", "1.10.0-rc.1", "1.9.0"]
    assert (found["latest_version"], found["production_version"]) == ("1.10.0", None)
    assert site.json(f"{ROOT}/{three}/latest")["version"] == "1.10.0"
    assert all(list(item) == ITEM_FIELDS for item in found["versions"])


def test_versions_are_filtered_by_stage(site: Any, three: str) -> None:
    site.client.post(f"{ROOT}/{three}/1.9.0/promote")
    labels = {
        stage: [item["version"] for item in site.json(f"{ROOT}/{three}?stage={stage}")["versions"]]
        for stage in ("production", "STAGING", "None")
    }
    assert labels == {"production": ["1.9.0"], "STAGING": [], "None": ["1.10.0", "1.10.0-rc.1"]}
    refused(site.client.get(f"{ROOT}/{three}?stage=live"), 400, "request_invalid", "stage")


def test_the_list_comes_in_pages(make_web: Callable[..., Any], tmp_path: Path, models: list[bytes]) -> None:
    made = make_web(tmp_path / "data")
    assert made.json(ROOT) == {"items": [], "next_cursor": None}
    for name in ("b", "a", "c"):
        registered(made, name, "1.0.0", models[0])
    first = made.json(f"{ROOT}?limit=2")
    assert [item["name"] for item in first["items"]] == ["a", "b"]
    second = made.json(f"{ROOT}?limit=2&cursor={first['next_cursor']}")
    assert ([item["name"] for item in second["items"]], second["next_cursor"]) == (["c"], None)
    fields = ["name", "versions", "latest_version", "production_version", "staging_version", "updated_at"]
    assert list(first["items"][0]) == fields
    for query in ("limit=0", "limit=1001", "limit=x", "cursor=x", "cursor=ä", f"cursor={cursor_from_name('a')[2:]}"):
        assert made.client.get(f"{ROOT}?{query}").status_code == 400


def test_two_versions_are_compared(site: Any, three: str) -> None:
    found = site.json(f"{ROOT}/{three}/compare?version1=1.9.0&version2=latest")
    assert found["metrics_comparison"] == {"ic": {"version1": 0.1, "version2": 0.0, "diff": -0.1, "diff_pct": -100.0}}
    assert set(found["size_comparison"]) == {"version1_mb", "version2_mb", "diff_mb"}
    assert found["parameters_comparison"] == {"seed": {"version1": 1, "version2": 0}}
    refused(site.client.get(f"{ROOT}/{three}/compare?version1=1.9.0"), 400, "request_invalid", "version2")
    refused(site.client.get(f"{ROOT}/{three}/compare?version1=1.9.0&version2=9.9.9"), 404, "version_not_found")


def test_what_there_is_not_is_404_and_what_has_a_directory_409(site: Any, three: str, web: Any) -> None:
    refused(site.client.get(f"{ROOT}/none"), 404, "model_not_found")
    refused(site.client.get(f"{ROOT}/{three}/9.9.9"), 404, "version_not_found")
    refused(site.client.get(f"{ROOT}/{three}/staging"), 404, "version_not_found")
    for method, path in (("POST", "none/rollback"), ("POST", "none/1.0.0/promote"), ("DELETE", "none/1.0.0")):
        refused(site.client.open(f"{ROOT}/{path}", method=method), 404, "model_not_found")
    refused(web.client.get(f"{ROOT}/alpha"), 409, "wrong_model_kind")
    refused(web.client.post(f"{ROOT}/alpha/latest/retire"), 409, "wrong_model_kind")


# --- stages -----------------------------------------------------------------------------------------------------------


def test_a_rollback_that_says_from_where_goes_back_one_however_often_it_is_sent(site: Any, three: str) -> None:
    for label in ("1.10.0-rc.1", "1.9.0", "1.10.0"):
        assert site.client.post(f"{ROOT}/{three}/{label}/promote").status_code == 200
    sent = [site.client.post(f"{ROOT}/{three}/rollback", json={"from": "1.10.0"}) for _ in range(2)]
    assert [(answer.status_code, answer.json["version"]) for answer in sent] == [(200, "1.9.0")] * 2
    assert sent[0].data == sent[1].data
    assert site.client.post(f"{ROOT}/{three}/1.10.0-rc.1/promote").status_code == 200
    said = refused(site.client.post(f"{ROOT}/{three}/rollback", json={"from": "1.10.0"}), 412, "version_changed")
    assert "1.10.0-rc.1" in said
    refused(site.client.post(f"{ROOT}/{three}/rollback", json={"from": 1}), 400, "request_invalid")
    refused(site.client.post(f"{ROOT}/{three}/rollback", data=b"from=1.0.0"), 415, "unsupported_media_type")


def test_stages_are_set_in_any_case_and_promotions_undone(site: Any, three: str) -> None:
    def stage(version: str, to: str | None) -> Any:
        return site.client.put(f"{ROOT}/{three}/{version}/stage", json={"stage": to}).json

    def stages() -> dict[str, str]:
        return {item["version"]: item["stage"] for item in site.json(f"{ROOT}/{three}")["versions"]}

    assert stage("1.9.0", "STAGING")["stage"] == "Staging"
    assert site.client.post(f"{ROOT}/{three}/Staging/promote").json["version"] == "1.9.0"
    assert stage("1.10.0", "production")["stage"] == "Production"
    assert stages() == {"1.10.0": "Production", "1.10.0-rc.1": "None", "1.9.0": "Archived"}
    back = site.client.post(f"{ROOT}/{three}/rollback")
    assert (back.json["version"], back.json["stage"]) == ("1.9.0", "Production")
    refused(site.client.post(f"{ROOT}/{three}/rollback"), 409, "nothing_before")
    refused(site.client.post(f"{ROOT}/{three}/1.9.0/retire"), 409, "version_in_use")
    refused(site.client.delete(f"{ROOT}/{three}/1.9.0"), 409, "version_in_use")
    assert site.client.post(f"{ROOT}/{three}/1.10.0-rc.1/retire").json["stage"] == "Archived"
    assert stage("1.9.0", None)["stage"] == "None"
    refused(site.client.post(f"{ROOT}/{three}/rollback"), 409, "not_in_production")


@pytest.mark.parametrize("stage", ["live", "", 1, ["Staging"]], ids=["unknown", "empty", "a number", "a list"])
def test_a_stage_that_there_is_not_is_refused_by_name(site: Any, name: str, models: list[bytes], stage: Any) -> None:
    registered(site, name, "1.0.0", models[0])
    response = site.client.put(f"{ROOT}/{name}/1.0.0/stage", json={"stage": stage})
    detail = refused(response, 400, "request_invalid", "stage")
    assert "Production, Staging, Archived or None" in detail or "Expected `str | null`" in detail


def test_metrics_tags_and_description_change_and_say_what_does_not_fit(
    site: Any, name: str, models: list[bytes]
) -> None:
    registered(
        site, name, "1.0.0", models[0], metrics={"ic": 0.1, "n": 1}, tags={"a": "1", "b": "2"}, description="old"
    )
    address = f"{ROOT}/{name}/1.0.0"
    changed = site.client.patch(f"{address}/metrics", json={"metrics": {"ic": None, "sharpe": 1.5}}).json
    assert changed["metrics"] == {"n": 1, "sharpe": 1.5}
    changed = site.client.patch(address, json={"tags": {"a": None, "c": "3"}}).json
    assert (changed["tags"], changed["description"]) == ({"b": "2", "c": "3"}, "old")
    assert site.client.patch(address, json={"description": "new"}).json["description"] == "new"
    refused(
        site.client.patch(f"{address}/metrics", json={"metrics": {"ic": "x"}}), 400, "request_invalid", "metrics.ic"
    )
    refused(site.client.patch(f"{address}/metrics", json={}), 400, "request_invalid", "metrics")
    refused(site.client.patch(address, json={"tags": {"a": 1}}), 400, "request_invalid", "tags.a")
    refused(site.client.patch(address, json={"description": 1}), 400, "request_invalid", "description")


@pytest.mark.parametrize("reference", ["latest", "Staging", "production"])
def test_what_is_forgotten_is_named_by_its_label(site: Any, name: str, models: list[bytes], reference: str) -> None:
    registered(site, name, "1.0.0", models[0])
    refused(site.client.delete(f"{ROOT}/{name}/{reference}"), 400, "request_invalid", "version")
    assert site.json(f"{ROOT}/{name}")["latest_version"] == "1.0.0"


def test_the_last_version_takes_the_model_with_it(site: Any, name: str, models: list[bytes]) -> None:
    registered(site, name, "1.0.0", models[0])
    registered(site, name, "1.1.0", models[1])
    for version in ("1.1.0", "1.0.0"):
        response = site.client.delete(f"{ROOT}/{name}/{version}")
        assert (response.status_code, response.data) == (204, b"")
    refused(site.client.get(f"/api/models/{name}"), 404, "model_not_found")


def test_a_watched_model_has_stages(
    site: Any, name: str, group_writer: Callable[..., None], xgboost_text: Callable[[int, int], bytes]
) -> None:
    directory = site.directory / name
    group_writer(directory, "BTCUSDT_ret_1h", seed=1)
    label = register_model(site.store, name, str(directory), Actor("test")).serving.label
    item = site.client.post(f"{ROOT}/{name}/latest/promote").json
    assert list(item) == ITEM_FIELDS
    assert (item["version"], item["stage"], item["model_type"], item["size_bytes"]) == (label, "Production", None, None)
    (directory / "BTCUSDT_ret_1h_model.json").write_bytes(xgboost_text(3, 5))
    site.client.post(f"/api/models/{name}/refresh?accept_vanished=true")
    found = site.json(f"/api/models/{name}")
    assert (found["version"], found["newest_version"] != label) == (label, True)
    refused(site.client.post(f"/api/models/{name}/rollback", json={"version": label}), 409, "pinned_by_stage")
    assert site.client.put(f"{ROOT}/{name}/{label}/stage", json={"stage": "None"}).json["stage"] == "None"
    assert site.json(f"/api/models/{name}")["version"] != label
    refused(upload(site, b"{}", name=name, version="1.0.0"), 409, "wrong_model_kind")


# --- what other routes say --------------------------------------------------------------------------------------------


def listed(site: Any, path: str, name: str, key: str) -> Any:
    found = site.json(path)
    items = found if isinstance(found, list) else found.get("items") or found["models"]
    return next(item for item in items if item[key] == name)


def test_lists_of_models_show_stage_format_and_metrics(site: Any, three: str) -> None:
    item = listed(site, "/api/ml/models", three, "name")
    assert (item["version"], item["stage"], item["model_type"], item["metrics"]) == (
        "1.10.0",
        "None",
        "xgboost",
        {"ic": 0.0},
    )
    assert item["size_mb"] == site.json(f"{ROOT}/{three}/latest")["size_mb"]
    site.client.put(f"{ROOT}/{three}/1.10.0/stage", json={"stage": "Staging"})
    assert listed(site, "/api/ml/models", three, "name")["stage"] == "Staging"
    site.client.patch(f"{ROOT}/{three}/1.9.0/metrics", json={"metrics": {"accuracy": 0.61}})
    site.client.post(f"{ROOT}/{three}/1.9.0/promote")
    item = listed(site, "/api/ml/models", three, "name")
    assert (item["version"], item["stage"], item["metrics"]) == ("1.9.0", "Production", {"ic": 0.1, "accuracy": 0.61})
    assert listed(site, "/models", three, "name")["accuracy"] == 0.61
    site.client.post(f"{ROOT}/{three}/1.10.0-rc.1/retire")
    versions = site.json(f"/models/{three}/versions")["versions"]
    assert {item["version"]: item["status"] for item in versions} == {
        "1.9.0": "production", "1.10.0": "staging", "1.10.0-rc.1": "archived"
    }  # fmt: skip
    item = listed(site, "/api/models", three, "model_name")
    assert item["root_path"] is None
    assert item["stages"] == {"production": "1.9.0", "staging": "1.10.0"}


def test_lists_of_registered_models_ask_the_database_only_after_changes(
    site: Any, three: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("/api/ml/models", "/models"):
        site.json(path)
    with monkeypatch.context() as without:
        without.setattr(type(site.store.database), "read", pytest.fail)
        assert listed(site, "/api/ml/models", three, "name")["metrics"] == {"ic": 0.0}
        assert listed(site, "/models", three, "name")
    site.client.patch(f"{ROOT}/{three}/latest/metrics", json={"metrics": {"ic": 0.5}})
    assert listed(site, "/api/ml/models", three, "name")["metrics"] == {"ic": 0.5}


def test_predictions_name_a_version_by_label_stage_or_not_at_all(site: Any, three: str) -> None:
    site.client.post(f"{ROOT}/{three}/1.9.0/promote")
    site.client.put(f"{ROOT}/{three}/1.10.0-rc.1/stage", json={"stage": "Staging"})
    answered = {
        version: site.client.post(
            "/predict",
            json={
                "model_name": three,
                "symbol": "BTC",
                "features": ROW,
                **({"model_version": version} if version else {}),
            },
        ).json["model_version"]
        for version in ("", "latest", "production", "staging", "1.10.0")
    }
    assert answered == {
        "": "1.9.0", "latest": "1.9.0", "production": "1.9.0", "staging": "1.10.0-rc.1", "1.10.0": "1.10.0"
    }  # fmt: skip
    assert site.json(f"/v2/models/{three}")["versions"] == ["1.10.0", "1.10.0-rc.1", "1.9.0"]
    assert site.json(f"/v2/models/{three}/versions/1.10.0")["inputs"][0]["shape"] == [-1, 3]


@pytest.mark.parametrize("symbol", ["ANY", "btc-usdt", "*"])
def test_the_model_is_downloaded_under_any_symbol(site: Any, name: str, models: list[bytes], symbol: str) -> None:
    registered(site, name, "1.0.0", models[0], factors=FACTORS)
    for _ in range(2):
        payload = site.json(f"/api/models/{name}/model/{symbol}")
        assert (payload["version"], payload["group_key"]) == ("1.0.0", "all")
        assert [row["factor_name"] for row in payload["payload"]["dim_factors"]] == FACTORS


def test_retired_models_answer_to_their_label_only_on_every_route(site: Any, name: str, models: list[bytes]) -> None:
    registered(site, name, "1.0.0", models[0])
    ask = {"model_name": name, "symbol": "BTC", "features": ROW}
    tensor = {"inputs": [{"name": "features", "shape": [1, 3], "datatype": "FP32", "data": ROW}]}

    def statuses() -> list[int]:
        posts = [
            ("/predict", ask),
            (f"/v2/models/{name}/infer", tensor),
            (f"/models/{name}/invocations", {"instances": [ROW]}),
        ]
        gets = [f"/api/models/{name}/model/BTC", f"/api/models/{name}/model/*", f"/api/models/{name}/symbols"]
        found = [site.client.post(path, json=body).status_code for path, body in posts for _ in range(2)]
        return found + [site.client.get(path).status_code for path in gets for _ in range(2)]

    assert set(statuses()) == {200}
    site.client.post(f"{ROOT}/{name}/1.0.0/retire")
    assert set(statuses()) == {404}
    assert site.client.post("/predict", json={**ask, "model_version": "1.0.0"}).status_code == 200
    assert listed(site, "/api/ml/models", name, "name")["stage"] == "Archived"
    assert site.json(f"{ROOT}/{name}")["latest_version"] is None
    assert name not in site.json("/v2/models")["models"]
    for page in ("/ui/", f"/ui/models/{name}", f"/ui/models/{name}/symbols/BTC", f"/ui/models/{name}/diff"):
        assert site.client.get(page).status_code == 200, page


def test_production_means_nothing_where_nothing_is_in_production(site: Any, name: str, models: list[bytes]) -> None:
    registered(site, name, "1.0.0", models[0])
    ask = {"model_name": name, "symbol": "BTC", "features": ROW}
    assert site.client.post("/predict", json=ask).status_code == 200
    for version in ("production", "staging"):
        response = site.client.post("/predict", json={**ask, "model_version": version})
        refused(response, 404, "version_not_found")


def test_a_directory_s_routes_refuse_a_registered_model_and_its_pages_work(
    site: Any, name: str, models: list[bytes]
) -> None:
    registered(site, name, "1.0.0", models[0])
    refused(site.client.post(f"/api/models/{name}/refresh"), 409, "wrong_model_kind")
    refused(site.client.post(f"/api/models/{name}/rollback", json={"version": "1.0.0"}), 409, "pinned_by_stage")
    for page in ("/ui/", f"/ui/models/{name}", f"/ui/models/{name}/symbols/*"):
        text = site.client.get(page).text
        assert name in text
        assert ">None<" not in text
    assert site.client.delete(f"/api/models/{name}").status_code == 204
    refused(site.client.get(f"{ROOT}/{name}"), 404, "model_not_found")


def test_a_model_for_all_symbols_does_not_answer_for_one_with_a_model_of_its_own(
    make_web: Callable[..., Any], group_writer: Callable[..., None], tmp_path: Path, models: list[bytes]
) -> None:
    made = make_web(tmp_path / "data")
    group_writer(tmp_path / "files", "BTCUSDT_ret_1h", seed=1)
    register_model(made.store, "own", str(tmp_path / "files"), Actor("test"))
    registered(made, "all", "1.0.0", models[0])

    def model_for(symbol: str) -> Any:
        return made.client.post("/predict", json={"symbol": symbol, "features": ROW}).json["model_name"]

    assert [model_for("BTC/USDT"), model_for("ETHUSDT")] == ["own", "all"]


# --- the reader of models ---------------------------------------------------------------------------------------------


def test_only_some_models_are_read_at_a_time(
    site: Any, name: str, models: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmserver.web.current.TURN_S", 0.05)
    reader = site.app.extensions[MODEL_READER_KEY]
    with reader.turn(), reader.turn():
        response = upload(site, models[0], name=name, version="1.0.0")
        refused(response, 503, "overloaded")
        assert response.headers["Retry-After"]
    registered(site, name, "1.0.0", models[0])


# --- what other routes say of registered versions -------------------------------------------------------------------


def test_other_protocols_list_the_versions_in_the_order_of_semantic_versions(site: Any, three: str) -> None:
    expected = ["1.10.0", "1.10.0-rc.1", "1.9.0"]
    assert site.json(f"/v2/models/{three}")["versions"] == expected
    assert [item["version"] for item in site.json(f"/models/{three}/versions")["versions"]] == expected
    assert [item["version"] for item in site.json(f"/models/{three}/versions?limit=1")["versions"]] == ["1.10.0"]


def test_a_prediction_names_the_accuracy_among_the_metrics_of_its_version(
    site: Any, name: str, models: list[bytes]
) -> None:
    registered(site, name, "1.0.0", models[0], metrics={"accuracy": 0.61, "train_accuracy": 0.99})
    registered(site, name, "1.1.0", models[1], metrics={"ic": 0.1})

    def accuracy(version: str) -> Any:
        ask = {"model_name": name, "model_version": version, "symbol": "ANY", "features": ROW}
        return site.client.post("/predict", json=ask).json["model_info"]["accuracy"]

    assert [accuracy("1.0.0"), accuracy("1.1.0")] == [0.61, None]
    for changed in (0.7, None):
        site.client.patch(f"{ROOT}/{name}/1.0.0/metrics", json={"metrics": {"accuracy": changed}})
        assert [accuracy("1.0.0"), accuracy("1.1.0")] == [changed, None]
