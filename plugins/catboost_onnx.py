"""CatBoost models on numeric features, saved as `.cbm`, made into ONNX by CatBoost itself."""

from typing import Any

from mmserver import (
    Conversion,
    ModelFile,
    ModelFormat,
    ModelSource,
    NotConvertible,
    Undecodable,
    content_from_graph,
    hookimpl,
    likeness,
    model_file_from_onnx,
    probe_rows_at_splits,
    probes_from_outputs,
    to_jsonable,
)

MARGIN, PREDICTION, PROBABILITIES = "margin", "prediction", "probabilities"
PLAIN_LOSSES = ("Expectile", "Huber", "Lq", "LogCosh", "MAE", "MAPE", "Quantile", "RMSE")
"""What is predicted for these is the sum of the leaves; for others it is given as `margin`."""
MAX_FEATURES = 2048
_ABSOLUTE = _RELATIVE = 1e-5


def read_catboost(source: ModelSource) -> ModelFile:
    """The trees as CatBoost exports them, with what it gives itself for the probe rows.

    Shapes:
        A classifier gives `probabilities` (n_rows × n_classes), anything else `prediction` or `margin`.
    """
    import catboost
    import msgspec
    import numpy as np
    from catboost.utils import convert_to_onnx_object

    if not source.content.startswith(b"CBM1"):
        detail = "a .cbm file is expected: model.save_model('model.cbm'); an .onnx of CatBoost's is an ONNX model"
        raise Undecodable("wrong_type", f"{detail}; this is {likeness(source.content)}")
    if len(source.content) < 8 + int.from_bytes(
        source.content[4:8], "little"
    ):  # CatBoost itself would read beyond the end
        raise Undecodable("torn", "the file is shorter than it says")
    model = catboost.CatBoost()
    model.load_model(blob=source.content)
    if len(model.get_cat_feature_indices()) or len(model.get_text_feature_indices()):
        raise NotConvertible(target="onnx", reason="it splits on categories or texts; encode them as numbers")
    loss = str(model.get_all_params().get("loss_function", ""))
    graph = convert_to_onnx_object(model)
    is_classifier = _give_tables(graph)
    output = PROBABILITIES if is_classifier else PREDICTION if loss.partition(":")[0] in PLAIN_LOSSES else MARGIN
    names = tuple(model.feature_names_)
    if len(names) > MAX_FEATURES:
        raise NotConvertible(
            target="onnx", reason=f"it takes {len(names)} features, at most {MAX_FEATURES} can be tried"
        )
    rows = probe_rows_at_splits(len(names), _splits(model), with_missing=True)
    pool = catboost.Pool(np.asfortranarray(rows), thread_count=1)  # row after row, it would be read by another thread
    kind = "Probability" if is_classifier else "RawFormulaVal"
    found = np.asarray(model.predict(pool, prediction_type=kind, thread_count=1))
    version = f"catboost {catboost.__version__}"
    file = model_file_from_onnx(
        content_from_graph(graph, {graph.graph.output[-1].name: output}),
        outputs=(output,),
        feature_names=None if names == tuple(str(number) for number in range(len(names))) else names,
        library_version=version,
        conversion=Conversion(source=f"{version} model", absolute=_ABSOLUTE, relative=_RELATIVE),
        probes=probes_from_outputs(rows, {output: found}),
        summary={"classes": to_jsonable(model.classes_)} if is_classifier else {},
    )
    return msgspec.structs.replace(file, objective=loss, n_trees=int(model.tree_count_))


def _give_tables(model: Any) -> bool:
    """Make the last output n_rows × width, as it is computed: whether it has the classes' probabilities."""
    from onnx import TensorProto, helper

    graph = model.graph
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    maps = [node for node in graph.node if node.op_type == "ZipMap"]
    for node in maps:
        table = helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, [batch, None])
        graph.node.remove(node)
        del graph.output[-1]
        graph.output.append(table)
    if not maps:
        graph.output[-1].type.tensor_type.shape.dim.add()
    return bool(maps)


def _splits(model: Any) -> list[tuple[int, float]]:
    """(feature, border) of every border that a tree uses, mixed, so that the first ones are of any feature and size."""
    import numpy as np

    found = [(int(feature), float(border)) for feature, borders in model.get_borders().items() for border in borders]
    return [found[at] for at in np.random.default_rng(13).permutation(len(found))]


def warm_up() -> None:
    """One model, read and run."""
    import catboost

    model = catboost.CatBoostRegressor(iterations=2, depth=1, verbose=False, thread_count=1, allow_writing_files=False)
    model.fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
    read_catboost(ModelSource(file_name="a.cbm", files={"a.cbm": model._serialize_model()}))


@hookimpl
def mmserver_model_formats() -> list[ModelFormat]:
    """Claims `.cbm`."""
    return [
        ModelFormat(
            name="catboost",
            suffixes=(".cbm",),
            read=read_catboost,
            modules=("catboost", "onnx", "onnxruntime"),
            extra="catboost",
            warm_up=warm_up,
        )
    ]
