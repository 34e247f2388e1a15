"""What a file looks like from its first bytes, and what to do with it: for whoever handed in another one than was expected."""

import re
from collections.abc import Callable

_HEAD_BYTES = 1 << 12
_TAIL_BYTES = 1 << 16
_PICKLES = {
    "lightgbm": "a pickle of LightGBM's: register it with the model type lightgbm, or save its text: model.booster_.save_model('model.txt')",
    "catboost": "a pickle of CatBoost's: save the model with model.save_model('model.cbm')",
    "xgboost": "a pickle of XGBoost's: register it with the model type xgboost, or save it with model.save_model('model.json')",
    "sklearn": "a pickle of scikit-learn's: save the model with skops: skops.io.dump(model, 'model.skops')",
    "torch": "a pickle of PyTorch's: save the state dict with torch.save(model.state_dict(), 'model.pt')",
}
_OF_CATBOOST = (
    "CatBoost's JSON, which CatBoost reads from files only, and no guarded process may open one. Two lines of Python make a .cbm of it: "
    "model = catboost.CatBoost().load_model('model.json', format='json'); model.save_model('model.cbm')"
)
_JSONS: tuple[tuple[bytes, str], ...] = (
    (b'"oblivious_trees"', _OF_CATBOOST),
    (b'"features_info"', _OF_CATBOOST),
    (b'"learner"', "XGBoost's JSON: register it with the model type xgboost"),
    (b'"tree_info"', "LightGBM's JSON, which it does not read: save the model as text with save_model('model.txt')"),
)
_ARCHIVES: tuple[tuple[bytes, str], ...] = (
    (b"model.weights.h5", "a Keras model: convert it to .tflite, as docs/plugins.md says"),
    (b"schema.json", "a skops file: register it with the model type sklearn"),
    (b"archive_format", "a torch.export program: register it with the model type torch"),
    (b"data.pkl", "a file of torch.save: register it with the model type torch"),
    (b".npy", "an .npz archive of numpy's, which is no model"),
)  # fmt: skip
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"tree\n", "LightGBM's text: register it with the model type lightgbm"),
    (b"tree\r\n", "LightGBM's text: register it with the model type lightgbm"),
    (b"CBM1", "a CatBoost model: register it with the model type catboost"),
    (b"\x89HDF", "an HDF5 file, as Keras wrote models before .keras: convert it to .tflite, as docs/plugins.md says"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"PAR1", "a Parquet table"),
    (b"\x93NUMPY", "an .npy file of numpy's, which is no model"),
    (b"\x1f\x8b", "a file that gzip compressed"),
    (b"\x78", "a file that zlib compressed, as joblib does"),
    (b"<", "a page or XML text"),
)  # fmt: skip


def likeness(content: bytes) -> str:
    """In words that follow "this is", with what to do with it."""
    head = content[:_HEAD_BYTES]
    if not content:
        named: str | None = "an empty file"
    elif content[4:8] == b"TFL3":
        named = "a TensorFlow Lite model: register it with the model type tflite"
    elif head.startswith(b"PK"):
        named = _first(_ARCHIVES, content[-_TAIL_BYTES:].__contains__) or "a zip archive"
    elif head.lstrip().startswith((b"{", b"[")):
        named = _first(_JSONS, content.__contains__) or "JSON of another kind"
    elif re.match(rb"\x80[\x02-\x05]", head):
        found = re.search(rb"(" + "|".join(_PICKLES).encode() + rb")\.", head)
        named = _PICKLES[found.group(1).decode()] if found else "a pickle of something else"
    elif re.match(rb"\x08[\x01-\x20][\x12\x1a\x3a]", head):
        named = "an ONNX graph: register it with the model type onnx"
    else:
        named = _first(_BEGINNINGS, head.startswith)
        if named is None and re.fullmatch(rb"[\t\n\r -~\x80-\xff]*", head):
            named = "text of another kind"
    return named or "something that no format begins with"


def _first(signs: tuple[tuple[bytes, str], ...], is_there: Callable[[bytes], bool]) -> str | None:
    return next((words for sign, words in signs if is_there(sign)), None)
