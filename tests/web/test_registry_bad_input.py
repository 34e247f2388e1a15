"""What a registration may say of a version, and where its files may lie: every refusal is the sender's, and leaves nothing."""

import io
import itertools
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = "/api/ml/registry/models"
ROW = [0.5, -0.25, 1.0]
_numbers = itertools.count()


@pytest.fixture(scope="module")
def models(xgboost_text: Callable[[int, int], bytes]) -> list[bytes]:
    """Two regressors of three inputs."""
    return [xgboost_text(3, seed) for seed in range(2)]


@pytest.fixture(scope="module")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one directory that files may be registered from."""
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture(scope="module")
def site(
    make_web: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, allowed: Path, models: list[bytes]
) -> Any:
    """With `good` 1.0.0 in production, which no refusal may change."""
    made = make_web(tmp_path_factory.mktemp("bad-input"), max_artifact_bytes=200_000, artifact_roots=(allowed,))
    assert upload(made, models[0], name="good", version="1.0.0").status_code == 201
    assert made.client.post(f"{ROOT}/good/1.0.0/promote").status_code == 200
    return made


@pytest.fixture
def name(site: Any) -> Iterator[str]:
    """A name that no other test has; what is in production is the same afterwards."""
    before = production(site)
    yield f"bad-{next(_numbers)}"
    assert production(site) == before


def production(site: Any) -> tuple[Any, Any]:
    """What is served, and what it predicts."""
    ask = {"model_name": "good", "symbol": "ANY", "features": ROW}
    answer = site.client.post("/predict", json=ask).json
    return answer["model_version"], answer["prediction"]


def upload(site: Any, content: bytes, **fields: str) -> Any:
    data = {**fields, "file": (io.BytesIO(content), "model.json")}
    return site.client.post(ROOT, data=data, content_type="multipart/form-data")


def check_refused(site: Any, response: Any, name: str, *, says: str, status: int = 400) -> None:
    """The sender's fault, said in words, and nothing of it is kept."""
    assert response.status_code == status, response.text
    assert says in response.json["detail"]
    assert site.client.get(f"{ROOT}/{name}").status_code == 404
    assert name not in {item["name"] for item in site.client.get(f"{ROOT}?limit=1000").json["items"]}


LABELS = [
    pytest.param(word, "it means whichever version is there", id=word)
    for word in ("latest", "LATEST", "production", "Production", "staging", "archived", "none", "None")
] + [
    pytest.param(text, "not a semantic version", id=what)
    for text, what in (
        ("", "empty"),
        (" 1.0.0", "a space before"),
        ("1.0.0 ", "a space after"),
        ("1.0.0\n", "a line's end"),
        ("1.0.0\t", "a tab"),
        ("1. 0.0", "a space within"),
        ("v1.0.0", "a leading v"),
        ("01.0.0", "a leading zero"),
        ("1.00.0", "a leading zero within"),
        ("1.0.0-01", "a leading zero in a pre-release"),
        ("1.0.0-", "an empty pre-release"),
        ("1.0.0+", "empty build metadata"),
        ("1", "one number"),
        ("1.0.0.0", "four numbers"),
        ("-1.0.0", "a negative number"),
        ("\uff11.0.0", "a wide digit"),
        ("\u0661.0.0", "an Arabic digit"),
        ("1.0.0-\u00fc", "a letter that is not ASCII"),
        ("1.0.0/../2", "a path"),
        ("1.0.0%2f", "a percent sign"),
        ("1.0.0?x", "a question mark"),
        ("null", "null"),
    )
]


@pytest.mark.parametrize(("label", "says"), LABELS)
def test_a_label_that_is_no_plain_semantic_version_is_refused(
    site: Any, name: str, models: list[bytes], label: str, says: str
) -> None:
    check_refused(site, upload(site, models[1], name=name, version=label), name, says=says)


def test_a_label_of_thousands_of_characters_is_refused(site: Any, name: str, models: list[bytes]) -> None:
    for label in ("1" * 5000 + ".0.0", "1.0.0-" + "a" * 5000):
        check_refused(site, upload(site, models[1], name=name, version=label), name, says="version")


@pytest.mark.parametrize(
    "model_name",
    [
        pytest.param("", id="empty"),
        pytest.param("a" * 5000, id="5000 characters"),
        pytest.param("..", id="dots"),
        pytest.param("../x", id="a path"),
        pytest.param("a\nb", id="two lines"),
        pytest.param("a b", id="a space"),
        pytest.param("a%2fb", id="a percent sign"),
        pytest.param("\u00fc", id="a letter that is not ASCII"),
        pytest.param("<script>", id="markup"),
    ],
)
def test_a_model_s_name_that_no_address_could_have_is_refused(
    site: Any, name: str, models: list[bytes], model_name: str
) -> None:
    response = upload(site, models[1], name=model_name, version="1.0.0")
    assert (response.status_code, response.json["code"]) == (400, "name_invalid")
    assert len(response.text) < 1000  # the name is not sent back whole


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        pytest.param('{"a": NaN}', "NaN is not JSON", id="NaN"),
        pytest.param('{"a": Infinity}', "Infinity is not JSON", id="Infinity"),
        pytest.param('{"a": -Infinity}', "Infinity is not JSON", id="-Infinity"),
        pytest.param('{"a": 1e400}', "too large", id="1e400"),
        pytest.param('{"a": -1e400}', "too large", id="-1e400"),
        pytest.param('{"a": 1%s}' % ("0" * 400), "64 bits", id="an integer of 400 digits"),
        pytest.param('{"a": 9223372036854775808}', "64-bit", id="2**63"),
        pytest.param('{"a": {"b": 1}}', "metrics.a: must be a number", id="nested"),
        pytest.param('{"a": [1]}', "metrics.a: must be a number", id="a list"),
        pytest.param('{"a": null}', "metrics.a: must be a number", id="null"),
        pytest.param('{"a": true}', "metrics.a: must be a number", id="true"),
        pytest.param('{"": 1}', "names have 1 to 256 characters", id="no name"),
        pytest.param('{"%s": 1}' % ("k" * 257), "names have 1 to 256 characters", id="a long name"),
        pytest.param('{"a\\u0000": 1}', "NUL", id="NUL in a name"),
        pytest.param('{"\\ud800": 1}', "surrogate", id="half of a surrogate pair"),
        pytest.param('{"a": 1}{}', "Extra data", id="two objects"),
        pytest.param('\ufeff{"a": 1}', "byte order mark", id="a byte order mark"),
        pytest.param("[" * 100_000, "nested deeper", id="deep"),
        pytest.param("null", "Expected `object`", id="nothing"),
    ],
)
def test_metrics_that_are_no_finite_numbers_by_name_are_refused(
    site: Any, name: str, models: list[bytes], metrics: str, says: str
) -> None:
    response = upload(site, models[1], name=name, version="1.0.0", metrics=metrics)
    check_refused(site, response, name, says=says)


def test_ten_thousand_metrics_are_kept_and_more_than_their_field_may_hold_refused(
    site: Any, name: str, models: list[bytes]
) -> None:
    many = {f"m{number}": number / 8 for number in range(10_000)}
    too_many = {f"m{number}": number for number in range(20_000)}
    said = upload(site, models[1], name=name, version="1.0.0", metrics=json.dumps(too_many))
    check_refused(site, said, name, says="more than 262144")
    assert upload(site, models[1], name=name, version="1.0.0", metrics=json.dumps(many)).status_code == 201
    assert site.json(f"{ROOT}/{name}/1.0.0")["metrics"] == many
    assert site.client.get(f"/ui/models/{name}").status_code == 200


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        pytest.param("tags", '{"a": "\\u0000"}', "NUL", id="a tag with NUL"),
        pytest.param("tags", '{"a": "\\ud800"}', "surrogate", id="a tag with half of a surrogate pair"),
        pytest.param("tags", '{"a": 1}', "tags.a: must be a string", id="a tag that is a number"),
        pytest.param("tags", '{"a": "%s"}' % ("x" * 300_000), "more than 262144", id="a tag of 300 kB"),
        pytest.param("description", "a\0b", "description: a string contains NUL", id="a description with NUL"),
        pytest.param("description", "x" * 20_001, "longer than 20000", id="a description of 20,001 characters"),
        pytest.param("model_type", "x" * 101, "1 to 100 printable", id="a type of 101 characters"),
        pytest.param("factors", '["a", "a", "a"]', "stands there twice", id="a factor twice"),
        pytest.param("factors", '["a"]', "the model has 3 inputs", id="too few factors"),
        pytest.param("factors", json.dumps(["x" * 300] * 3), "1 to 256", id="a factor of 300 characters"),
        pytest.param("info", '{"dim": 7}', "it says dim 7", id="an info that contradicts"),
        pytest.param("options", '{"a": 1e400}', "too large", id="an option that is no number"),
        pytest.param("training_params", '{"a":' * 40 + "1" + "}" * 40, "nested deeper", id="deep parameters"),
        pytest.param("sha256", "zz", "the file that arrived has", id="a hash that is none"),
        pytest.param("sha256", "0" * 64, "the file that arrived has", id="another file's hash"),
        pytest.param("derived_from", "latest", "it means whichever version", id="derived from whichever is there"),
    ],
)
def test_what_else_is_said_is_kept_as_it_is_or_refused(
    site: Any, name: str, models: list[bytes], field: str, value: str, says: str
) -> None:
    response = upload(site, models[1], **{"name": name, "version": "1.0.0", field: value})
    check_refused(site, response, name, says=says)


def test_control_characters_and_markup_in_tags_are_given_back_and_shown_as_text(
    site: Any, name: str, models: list[bytes]
) -> None:
    tags = {"<b>": "<script>alert(1)</script>", "line\nfeed": "\x1b[31mred\x7f", "\u202e": "\ufeff"}
    assert upload(site, models[1], name=name, version="1.0.0", tags=json.dumps(tags)).status_code == 201
    assert site.json(f"{ROOT}/{name}/1.0.0")["tags"] == tags
    for page in ("/ui/", f"/ui/models/{name}", f"/ui/models/{name}/versions/1.0.0"):
        response = site.client.get(page)
        assert response.status_code == 200
        assert "<script>alert" not in response.text
    assert "&lt;script&gt;alert" in response.text


# --- files on the server ----------------------------------------------------------------------------------------------


def make_device(path: Path) -> None:
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root can make a device, where the kernel lets it")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # an address has room for a hundred characters


def make_sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize(
    ("make", "status", "says"),
    [
        pytest.param(os.mkfifo, 400, "it is not a regular file", id="a pipe"),
        pytest.param(make_device, 400, "it is not a regular file", id="a device that never ends"),
        pytest.param(make_socket, 400, "it is not a regular file", id="a socket"),
        pytest.param(Path.mkdir, 400, "it is not a regular file", id="a directory"),
        pytest.param(lambda path: path.symlink_to(path), 400, "symlinks cannot be followed", id="a link to itself"),
        pytest.param(lambda path: path.symlink_to("/etc/passwd"), 400, "outside the allowed roots", id="a link out"),
        pytest.param(lambda path: path.symlink_to("/dev/zero"), 400, "outside the allowed roots", id="a link to zeros"),
        pytest.param(lambda path: path.symlink_to("none.json"), 400, "no such file", id="a link to nothing"),
        pytest.param(Path.touch, 400, "it has no bytes", id="an empty file"),
        pytest.param(make_sparse, 413, "max_artifact_bytes", id="a file of 1 TiB without content"),
    ],
)
def test_a_path_that_is_no_file_of_bounded_size_beneath_a_root_is_refused(
    site: Any, name: str, allowed: Path, make: Callable[[Path], None], status: int, says: str
) -> None:
    path = allowed / f"{name}.json"
    make(path)
    response = site.client.post(ROOT, json={"name": name, "version": "1.0.0", "path": str(path)})
    check_refused(site, response, name, says=says, status=status)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        pytest.param("/etc/passwd", "outside the allowed roots", id="a file of the system"),
        pytest.param("/proc/self/environ", "outside the allowed roots", id="the server's environment"),
        pytest.param("/dev/zero", "outside the allowed roots", id="a device"),
        pytest.param("ALLOWED/../out.json", "outside the allowed roots", id="above the root"),
        pytest.param("ALLOWED-2/m.json", "outside the allowed roots", id="a root's name as a beginning"),
        pytest.param("m.json", "give an absolute path", id="relative"),
        pytest.param("~/m.json", "give an absolute path", id="a home directory"),
        pytest.param("file:///etc/passwd", "give an absolute path", id="an address"),
        pytest.param("", "give an absolute path", id="empty"),
        pytest.param("ALLOWED/m.json\0", "NUL", id="NUL"),
        pytest.param(f"ALLOWED/{'y' * 300}.json", "no such file", id="a name that no file can have"),
        pytest.param("ALLOWED", "it is not a regular file", id="the root itself"),
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(site: Any, name: str, allowed: Path, path: str, says: str) -> None:
    path = path.replace("ALLOWED", str(allowed))
    response = site.client.post(ROOT, json={"name": name, "version": "1.0.0", "path": path})
    check_refused(site, response, name, says=says)


def test_the_files_beside_a_model_are_held_to_the_same_roots(
    site: Any, name: str, allowed: Path, models: list[bytes]
) -> None:
    model, link = allowed / f"{name}.json", allowed / f"{name}.data"
    model.write_bytes(models[1])
    link.symlink_to("/etc/passwd")
    for other in (str(link), "/etc/passwd", str(allowed / "none")):
        body = {"name": name, "version": "1.0.0", "path": str(model), "other_paths": [other]}
        response = site.client.post(ROOT, json=body)
        assert response.status_code == 400, response.text
        assert site.client.get(f"{ROOT}/{name}").status_code == 404
