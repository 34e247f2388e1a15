"""The bodies of the scoring protocol that MLflow and SageMaker share."""

from typing import Any, TypeAlias

import msgspec

Cell: TypeAlias = float | None
Record: TypeAlias = dict[str, Cell]


class SplitTable(msgspec.Struct, omit_defaults=True):
    """A table by columns' names and rows; without `columns` the cells are in factor order."""

    data: list[list[Cell]]
    columns: list[str] | None = None
    index: list[Any] | None = None


class DataframeSplit(msgspec.Struct):
    """A table as pandas splits it."""

    dataframe_split: SplitTable
    params: dict[str, Any] | None = None


class DataframeRecords(msgspec.Struct):
    """A table as one object a row."""

    dataframe_records: list[Record]
    params: dict[str, Any] | None = None


class Instances(msgspec.Struct):
    """A table as rows: lists in factor order, or objects by factor name."""

    instances: list[list[Cell | list[Any]] | Record]
    params: dict[str, Any] | None = None


class Inputs(msgspec.Struct):
    """A table as columns by factor name, or as rows in factor order."""

    inputs: dict[str, list[Cell]] | list[list[Cell | list[Any]]]
    params: dict[str, Any] | None = None


class Scores(msgspec.Struct):
    """What the model's library predicts for each row: a number, or a list where it gives several."""

    predictions: list[float | list[float]]
