"""What a file looks like is said in words that help whoever sent another one than was expected."""

import io
import pickle
import re
import zipfile

import pytest

from mmserver.inert.likeness import likeness


def archive(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name in names:
            opened.writestr(name, b"1")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"", "an empty file", id="empty"),
        pytest.param(b"hello\n", "text of another kind", id="text"),
        pytest.param(bytes(99), "something that no format begins with", id="zeros"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "a PNG image", id="png"),
        pytest.param(b"\x89HDF\r\n", "an HDF5 file", id="hdf5"),
        pytest.param(b"tree\nversion=v4\n", "LightGBM's text: register it with the model type lightgbm", id="lightgbm"),
        pytest.param(b"CBM1" + bytes(9), "a CatBoost model", id="catboost"),
        pytest.param(b"\x1c\0\0\0TFL3", "a TensorFlow Lite model", id="tflite"),
        pytest.param(
            b'{"features_info": {}, "learner": 1}', r"CatBoost's JSON, .*save_model\('model.cbm'\)", id="catboost-json"
        ),
        pytest.param(b'{"learner": {"tree_info": []}}', "XGBoost's JSON", id="xgboost-json"),
        pytest.param(b' {"tree_info": []}', "LightGBM's JSON", id="lightgbm-json"),
        pytest.param(b'{"a": 1}', "JSON of another kind", id="json"),
        pytest.param(
            b"\x80\x05clightgbm.sklearn\nLGBM\n.", ".*model type lightgbm, .*booster_.save_model", id="lightgbm-pickle"
        ),
        pytest.param(b"\x80\x05csklearn.svm\nSVC\n.", ".*save the model with skops", id="sklearn-pickle"),
        pytest.param(pickle.dumps({"a": 1}), "a pickle of something else", id="pickle"),
        pytest.param(archive("schema.json"), "a skops file", id="skops"),
        pytest.param(archive("config.json", "model.weights.h5"), "a Keras model: convert it to .tflite", id="keras"),
        pytest.param(archive("a/data.pkl"), "a file of torch.save", id="torch"),
        pytest.param(archive("a/archive_format"), "a torch.export program", id="torch-program"),
        pytest.param(archive("readme"), "a zip archive", id="zip"),
        pytest.param(b"\x08\x0a\x12\x07pytorch", "an ONNX graph", id="onnx"),
    ],
)
def test_a_file_is_called_what_it_is(content: bytes, says: str) -> None:
    assert re.match(says, likeness(content)), likeness(content)
