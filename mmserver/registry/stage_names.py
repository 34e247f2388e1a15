"""Stages as people, files and other programs write them."""

from enum import StrEnum

from mmserver.registry.versions import VersionStage


class ModelStage(StrEnum):
    """What a version of a model is used for."""

    NONE = "None"
    STAGING = "Staging"
    PRODUCTION = "Production"
    ARCHIVED = "Archived"


def stage_name(stage: VersionStage | None) -> ModelStage:
    """`production` → `Production`; `None` is a word here."""
    return ModelStage.NONE if stage is None else ModelStage(stage.capitalize())
