"""The registry from Python, sync and async, on a data directory of its own or a running server's."""

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmserver.registry
from mmserver.catalog.catalog import Actor
from mmserver.catalog.opening import open_store
from mmserver.catalog.registering import register_model
from mmserver.errors import (
    ArtifactInvalid,
    ModelNotFound,
    RequestInvalid,
    UploadTooLarge,
    VersionInUse,
    VersionInvalid,
    VersionNotFound,
    VersionTaken,
    WrongModelKind,
)
from mmserver.registry import AsyncModelRegistry, ModelRegistry, ModelStage, get_model_registry
from mmserver.settings import Settings


@pytest.fixture
def files(tmp_path: Path, contents: dict[int, bytes]) -> Path:
    directory = tmp_path / "files"
    directory.mkdir()
    for seed in range(3):
        (directory / f"{seed}.json").write_bytes(contents[seed])
    return directory


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", sandbox_workers=1, registry_dir=tmp_path / "models")


@pytest.fixture
def registry(settings: Settings) -> Iterator[ModelRegistry]:
    with ModelRegistry(settings=settings) as opened:
        yield opened


def test_the_way_of_a_model_awaited(tmp_path: Path, settings: Settings, files: Path) -> None:
    async def way() -> None:
        async with get_model_registry(settings=settings) as registry:
            first = await registry.register_model(
                "hybrid", "1.0.0", str(files / "0.json"), model_type="xgboost", description="first",
                metrics={"sharpe": 1.0}, training_params={"epochs": 3}, tags={"desk": "fx"}, factors=("a", "b", "c"),
            )  # fmt: skip
            assert (first.metadata.name, first.metadata.version, first.metadata.stage) == (
                "hybrid",
                "1.0.0",
                ModelStage.NONE,
            )
            assert first.metadata.size_mb == (files / "0.json").stat().st_size / 2**20
            assert first.metadata.path == tmp_path / "models/hybrid/v1.0.0"
            assert (first.metadata.path / "model.json").exists()
            await registry.register_model("hybrid", "1.1.0", files / "1.json", metrics={"sharpe": 1.5}, stage="Staging")
            assert await registry.get_production_model("hybrid") is None
            staged = await registry.get_staging_model("hybrid")
            assert staged is not None
            assert staged.version == "1.1.0"
            assert (await registry.promote_to_production("hybrid", "1.0.0")).stage is ModelStage.PRODUCTION
            assert (await registry.set_model_stage("hybrid", "1.1.0", ModelStage.PRODUCTION)).stage == "Production"
            assert [(i.version, i.stage.value) for i in await registry.list_models()] == [
                ("1.1.0", "Production"),
                ("1.0.0", "Archived"),
            ]
            assert [i.version for i in await registry.list_models("hybrid", ModelStage.ARCHIVED)] == ["1.0.0"]
            assert (await registry.get_model("hybrid")).version == "1.1.0"
            assert (await registry.update_metrics("hybrid", "1.1.0", {"ic": 0.1})).metadata.metrics == {
                "sharpe": 1.5,
                "ic": 0.1,
            }
            compared = await registry.compare_models("hybrid", "1.0.0", "1.1.0")
            assert compared["metrics_comparison"]["sharpe"] == {
                "version1": 1.0,
                "version2": 1.5,
                "diff": 0.5,
                "diff_pct": 50.0,
            }
            assert set(compared["size_comparison"]) == {"version1_mb", "version2_mb", "diff_mb"}
            with pytest.raises(VersionInUse):
                await registry.retire_model("hybrid", "1.1.0")
            assert (await registry.rollback("hybrid")).version == "1.0.0"
            assert (await registry.retire_model("hybrid", "1.1.0")).stage is ModelStage.ARCHIVED
            said = await registry.annotate_model("hybrid", "1.0.0", description="x", tags={"desk": None, "a": "b"})
            assert (said.metadata.description, said.metadata.tags) == ("x", {"a": "b"})
            await registry.delete_model("hybrid", "1.1.0")
            with pytest.raises(VersionNotFound):
                await registry.get_model("hybrid", "1.1.0")

    asyncio.run(way())


def test_a_running_server_follows_what_is_done_beside_it(settings: Settings, files: Path) -> None:
    with open_store(settings) as server, ModelRegistry(settings=settings) as registry:
        registry.register_model("hybrid", "1.0.0", files / "0.json")
        registry.register_model("hybrid", "1.1.0", files / "1.json")
        registry.promote_to_production("hybrid", "1.0.0")
        server.follow_commits()
        assert server.model("hybrid").serving.label == "1.0.0"


def test_registering_again_changes_nothing_and_other_content_is_refused(registry: ModelRegistry, files: Path) -> None:
    first = registry.register_model("hybrid", "1.0.0", files / "0.json")
    assert registry.register_model("hybrid", "1.0.0", files / "0.json") == first
    with pytest.raises(VersionTaken):
        registry.register_model("hybrid", "1.0.0", files / "1.json")


def test_rubbish_is_refused_with_the_reason(registry: ModelRegistry, files: Path) -> None:
    (files / "torn.json").write_bytes((files / "0.json").read_bytes()[:-20])
    with pytest.raises(ArtifactInvalid):
        registry.register_model("hybrid", "1.0.0", files / "torn.json")
    with pytest.raises(VersionInvalid):
        registry.register_model("hybrid", "production", files / "0.json")
    with pytest.raises(FileNotFoundError):
        registry.register_model("hybrid", "1.0.0", files / "none.json")
    with pytest.raises(ArtifactInvalid, match="not_regular"):
        registry.register_model("hybrid", "1.0.0", files)
    with pytest.raises(RequestInvalid, match="stage"):
        registry.register_model("hybrid", "1.0.0", files / "0.json", stage="Live")
    with pytest.raises(RequestInvalid, match="the name"):
        registry.register_model("hybrid", "1.0.0", files / "0.json", other_paths=[files / "0.json"])
    with pytest.raises(ModelNotFound):
        registry.promote_to_production("hybrid", "1.0.0")
    with pytest.raises(ModelNotFound):
        registry.get_production_model("hybrid")
    assert registry.list_models() == []


@pytest.mark.parametrize("field", ["factors", "other_paths"])
def test_a_text_is_not_taken_for_a_list_of_its_letters(registry: ModelRegistry, files: Path, field: str) -> None:
    with pytest.raises(RequestInvalid, match=f"^{field}: must be a list$"):
        registry.register_model("hybrid", "1.0.0", files / "0.json", **{field: "abcde"})  # type: ignore[arg-type]
    assert registry.list_models() == []


def test_a_version_is_forgotten_by_its_label_only(registry: ModelRegistry, files: Path) -> None:
    registry.register_model("hybrid", "1.0.0", files / "0.json", stage="Staging")
    for reference in ("latest", "Staging"):
        assert registry.get_model("hybrid", reference).version == "1.0.0"
        with pytest.raises(RequestInvalid, match=r"^version: name the label"):
            registry.delete_model("hybrid", reference)
    registry.delete_model("hybrid", "1.0.0")
    assert registry.list_models() == []


def test_a_file_over_the_limit_is_refused(tmp_path: Path, files: Path) -> None:
    small = Settings(data_dir=tmp_path / "data", sandbox_workers=1, max_artifact_bytes=100)
    with ModelRegistry(settings=small) as registry, pytest.raises(UploadTooLarge, match="MMSERVER_MAX_ARTIFACT_BYTES"):
        registry.register_model("hybrid", "1.0.0", files / "0.json")


def test_a_watched_model_is_refused(settings: Settings, registry: ModelRegistry, tmp_path: Path, files: Path) -> None:
    (tmp_path / "watched").mkdir()
    (tmp_path / "watched/BTC_ret_model.json").write_bytes((files / "0.json").read_bytes())
    with open_store(settings) as server:
        register_model(server, "alpha", str(tmp_path / "watched"), Actor("test"))
    with pytest.raises(WrongModelKind):
        registry.promote_to_production("alpha", "latest")
    with pytest.raises(WrongModelKind):
        registry.get_model("alpha")


def test_the_environment_says_where_the_data_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: Path) -> None:
    monkeypatch.setenv("MMSERVER_DATA_DIR", str(tmp_path / "from-environment"))
    with ModelRegistry() as registry:
        registry.register_model("hybrid", "1.0.0", files / "0.json")
    with ModelRegistry(tmp_path / "from-environment") as registry:
        assert registry.get_model("hybrid").metadata.path is None


def test_every_method_can_be_awaited() -> None:
    methods = {name for name, _ in inspect.getmembers(ModelRegistry, inspect.isfunction) if not name.startswith("_")}
    awaited = {
        name
        for name, _ in inspect.getmembers(AsyncModelRegistry, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    assert methods == awaited


def test_the_package_imports_nothing_heavy_before_it_is_asked() -> None:
    code = "import mmserver.registry, sys; print({'sqlalchemy', 'flask', 'xgboost', 'onnxruntime'} & set(sys.modules));"
    code += (
        "mmserver.registry.get_model_registry; print({'flask', 'xgboost', 'onnxruntime', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["set()", "set()"]


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = mmserver.registry.nothing
