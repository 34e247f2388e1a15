"""Importing directories of models: what other programs keep, what this one wrote, and rubbish."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmserver.catalog.catalog import Actor
from mmserver.registry.importing import import_directory
from mmserver.registry.layout import sync_directory
from mmserver.registry.stages import promote, retire, set_stage
from mmserver.registry.taking_over import TakenOver
from mmserver.registry.versions import get_version, list_versions

TEST = Actor("test")


@pytest.fixture
def found(tmp_path: Path) -> Path:
    directory = tmp_path / "found"
    directory.mkdir()
    return directory


@pytest.fixture
def write(bench: Any, found: Path) -> Callable[..., Path]:
    """Write one version as other programs do."""

    def write_it(label: str, seed: int = 0, metadata: Any = None, name: str = "hybrid") -> Path:
        directory = found / name / f"v{label}"
        directory.mkdir(parents=True)
        (directory / "model.tiny").write_bytes(bench.contents[seed])
        said = {"name": name, "version": label} if metadata is None else metadata
        if said:
            (directory / "metadata.json").write_text(said if isinstance(said, str) else json.dumps(said))
        return directory

    return write_it


def imported(bench: Any, directory: Path) -> TakenOver:
    return import_directory(bench.store, bench.reader, directory, TEST)


def stages(bench: Any, name: str = "hybrid") -> dict[str, str | None]:
    return {version.label: version.stage for version in list_versions(bench.store, name)}


def test_a_tree_of_others_is_imported_with_its_stages(bench: Any, found: Path, write: Callable[..., Path]) -> None:
    write("1.0.0", 0, {"stage": "Archived", "metrics": {"sharpe": 1.2}, "description": "first"})
    write("1.1.0", 1)
    write("1.2.0", 2)
    (found / "hybrid/production").symlink_to("v1.1.0")
    (found / "hybrid/staging").symlink_to(str(found / "hybrid/v1.2.0"))
    done = imported(bench, found)
    assert done.skipped == []
    assert done.registered == ["hybrid 1.1.0", "hybrid 1.0.0", "hybrid 1.2.0"]  # production first
    assert stages(bench) == {"1.2.0": "staging", "1.1.0": "production", "1.0.0": "archived"}
    assert get_version(bench.store, "hybrid", "1.0.0").metrics == {"sharpe": 1.2}
    assert bench.served == "1.1.0"


def test_nothing_but_production_is_served_while_a_tree_is_imported(
    bench: Any, found: Path, write: Callable[..., Path]
) -> None:
    for seed, label in enumerate(("1.0.0", "1.1.0", "1.2.0")):
        write(label, seed)
    (found / "hybrid/production").symlink_to("v1.0.0")
    imported(bench, found)
    served = [event.version for event in bench.events if event.kind in ("model_registered", "version_served")]
    assert set(served) == {"1.0.0"}


def test_a_second_import_changes_nothing(bench: Any, found: Path, write: Callable[..., Path]) -> None:
    write("1.0.0", 0, {"stage": "Archived"})
    write("1.1.0", 1)
    (found / "hybrid/production").symlink_to("v1.1.0")
    imported(bench, found)
    n_audited = len(bench.audit())
    again = imported(bench, found)
    assert (again.registered, again.staged, again.skipped) == ([], [], [])
    assert again.unchanged == ["hybrid 1.1.0", "hybrid 1.0.0"]
    assert len(bench.audit()) == n_audited


def test_an_import_never_replaces_what_is_in_production_here(
    bench: Any, found: Path, write: Callable[..., Path]
) -> None:
    bench.register("1.0.0", 3)
    promote(bench.store, "hybrid", "1.0.0", TEST)
    write("2.0.0", 1)
    (found / "hybrid/production").symlink_to("v2.0.0")
    done = imported(bench, found)
    assert done.registered == ["hybrid 2.0.0"]
    assert "hybrid 2.0.0: not put into Production, 1.0.0 is there" in done.notes
    assert bench.served == "1.0.0"


def test_a_pointer_file_is_read_like_a_link(bench: Any, found: Path, write: Callable[..., Path]) -> None:
    write("1.0.0")
    (found / "hybrid/production").write_text("v1.0.0\n")
    imported(bench, found)
    assert stages(bench) == {"1.0.0": "production"}


def test_what_is_unknown_of_a_version_becomes_tags(bench: Any, write: Callable[..., Path], found: Path) -> None:
    said = {
        "created_at": "2024-01-01", "framework": "torch", "epochs": 3, "layers": [1, 2], "size_mb": 4,
        "model_type": "cnn_lstm", "tags": {"desk": "fx"}, "training_params": {"rate": 0.1},
    }  # fmt: skip
    write("1.0.0", 0, said)
    imported(bench, found)
    version = get_version(bench.store, "hybrid", "1.0.0")
    assert version.tags == {
        "created_at": "2024-01-01", "framework": "torch", "epochs": "3", "layers": "[1, 2]", "desk": "fx",
    }  # fmt: skip
    assert (version.model_type, version.training_params) == ("cnn_lstm", {"rate": 0.1})


def test_metrics_that_are_no_numbers_are_left_out_and_named(
    bench: Any, write: Callable[..., Path], found: Path
) -> None:
    write("1.0.0", 0, '{"metrics": {"sharpe": NaN, "ic": 0.5, "note": "good"}, "tags": ["a"], "description": null}')
    done = imported(bench, found)
    version = get_version(bench.store, "hybrid", "1.0.0")
    assert (version.metrics, version.tags) == ({"ic": 0.5}, {"a": "true"})
    assert [note.split(": ")[1] for note in done.notes] == ["metrics.sharpe", "metrics.note"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(lambda at: (at / "model.tiny").write_bytes(b"{}"), "model", id="no-model"),
        pytest.param(lambda at: (at / "model.tiny").unlink(), "no model", id="file-missing"),
        pytest.param(lambda at: (at / "metadata.json").write_text('{"a'), "not JSON", id="metadata-torn"),
        pytest.param(lambda at: (at / "metadata.json").write_bytes(b"\xff\xfe\x00"), "not JSON", id="metadata-binary"),
        pytest.param(lambda at: (at / "metadata.json").write_text("[" * 100_000), "not JSON", id="metadata-deep"),
        pytest.param(lambda at: (at / "metadata.json").write_text("[]"), "not an object", id="metadata-list"),
        pytest.param(lambda at: (at / "metadata.json").write_text('{"version": "2.0.0"}'), "it is of version", id="another-version"),
        pytest.param(lambda at: (at / "metadata.json").write_text(json.dumps({"sha256": "0" * 64})), "SHA-256", id="other-hash"),
        pytest.param(lambda at: (at / "metadata.json").write_text('{"factors": "abc"}'), "factors", id="bad-factors"),
        pytest.param(lambda at: at.rename(at.with_name("v1.0")), "write 1.0.0", id="label-short"),
        pytest.param(lambda at: at.rename(at.with_name("vlatest")), "latest", id="label-reserved"),
        pytest.param(lambda at: (at / "model.json").write_text("{}"), "several models", id="two-models"),
        pytest.param(lambda at: (os.unlink(at / "model.tiny"), (at / "model.tiny").symlink_to("/etc/hostname")), "not a regular", id="symlink"),
        pytest.param(lambda at: (os.unlink(at / "model.tiny"), os.mkfifo(at / "model.tiny")), "not a regular", id="pipe"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_named_and_the_rest_goes_on(
    bench: Any, found: Path, write: Callable[..., Path], spoil: Callable[[Path], object], reason: str
) -> None:
    spoil(write("1.0.0", 0, {"description": "x"}))
    write("1.1.0", 1)
    write("1.0.0", 2, name="other")
    done = imported(bench, found)
    assert done.registered == ["hybrid 1.1.0", "other 1.0.0"]
    assert len(done.skipped) == 1
    assert reason in done.skipped[0]


def test_a_directory_that_is_a_link_is_not_followed(
    bench: Any, found: Path, write: Callable[..., Path], tmp_path: Path
) -> None:
    write("1.0.0").rename(tmp_path / "elsewhere")
    (found / "hybrid/v1.0.0").symlink_to(tmp_path / "elsewhere")
    (found / "all").symlink_to("/")
    done = imported(bench, found)
    assert done.registered == []
    assert [line.split(":")[0] for line in done.skipped] == ["all", "hybrid 1.0.0"]


def test_the_directory_of_one_model_is_told_from_that_of_all(
    bench: Any, found: Path, write: Callable[..., Path]
) -> None:
    write("1.0.0")
    assert "name the one above it" in imported(bench, found / "hybrid").skipped[0]


def test_a_model_over_the_limit_is_left_out(
    open_bench: Callable[..., Any], found: Path, write: Callable[..., Path]
) -> None:
    write("1.0.0")
    done = imported(open_bench(max_artifact_bytes=100), found)
    assert "larger than the 100 bytes that MMSERVER_MAX_ARTIFACT_BYTES allows" in done.skipped[0]


def test_what_one_server_wrote_another_imports_and_the_first_finds_unchanged(
    open_bench: Callable[..., Any], tmp_path: Path
) -> None:
    first = open_bench(registry_dir=tmp_path / "models")
    first.register("1.0.0", 0, files={"data/weights.bin": b"w", "metadata.json": b"theirs"}, metrics={"ic": 0.1})
    first.register("1.0.0+int8", 1, derived_from="1.0.0", info={"dim": 3})
    first.register("1.1.0", 2, factors=None)
    promote(first.store, "hybrid", "1.0.0+int8", TEST)
    set_stage(first.store, "hybrid", "1.1.0", "staging", TEST)
    retire(first.store, "hybrid", "1.0.0", TEST)
    assert imported(first, tmp_path / "models").unchanged == ["hybrid 1.0.0", "hybrid 1.0.0+int8", "hybrid 1.1.0"]
    second = open_bench(tmp_path / "second")
    done = imported(second, tmp_path / "models")
    assert (done.skipped, len(done.registered)) == ([], 3)
    for label in ("1.0.0", "1.0.0+int8", "1.1.0"):
        ours, theirs = (get_version(one.store, "hybrid", label) for one in (second, first))
        for name in (
            "stage",
            "metrics",
            "training_params",
            "factors",
            "derived_from",
            "size_bytes",
            "model_type",
            "sha256",
        ):
            assert getattr(ours, name) == getattr(theirs, name), name
        assert ours.tags == {
            "created_at": json.loads((tmp_path / f"models/hybrid/v{label}/metadata.json").read_text())["created_at"]
        }
    assert imported(second, tmp_path / "models").registered == []


def test_a_damaged_file_of_ours_is_not_imported(open_bench: Callable[..., Any], tmp_path: Path) -> None:
    first = open_bench(registry_dir=tmp_path / "models")
    first.register("1.0.0")
    path = tmp_path / "models/hybrid/v1.0.0/model.tiny"
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    done = imported(open_bench(tmp_path / "second"), tmp_path / "models")
    assert done.registered == []
    assert "manifest_mismatch" in done.skipped[0]


def test_what_was_imported_is_written_to_the_directory(
    open_bench: Callable[..., Any], found: Path, write: Callable[..., Path], tmp_path: Path
) -> None:
    write("1.0.0")
    (found / "hybrid/production").symlink_to("v1.0.0")
    bench = open_bench(registry_dir=tmp_path / "models")
    imported(bench, found)
    assert os.readlink(tmp_path / "models/hybrid/production") == "v1.0.0"
    assert not sync_directory(bench.store).is_changed
