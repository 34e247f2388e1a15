"""Makes the TensorFlow Lite models beside it, and what TensorFlow itself predicts for the rows in outputs.json.

Run it where TensorFlow is installed: `python tests/plugins/tflite/make_models.py`. The tests need its files, not TensorFlow.
"""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent
RANDOM = np.random.default_rng(5)


def dense() -> tf.keras.Model:
    """Two heads, whose names stand in another order than their tensors."""
    rows = tf.keras.Input((4,), name="rows")
    hidden = tf.keras.layers.Dense(8, "relu")(rows)
    classes = tf.keras.layers.Dense(3, "softmax")(hidden)
    expected = tf.keras.layers.Dense(1)(hidden)
    return tf.keras.Model(rows, {"probabilities": classes, "expected_return": expected})


def recurrent() -> tf.keras.Model:
    """Convolution, normalisation and an LSTM over six steps of four factors; the converter wants its batch fixed."""
    rows = tf.keras.Input(batch_shape=(1, 6, 4), name="rows")
    found = tf.keras.layers.Conv1D(6, 3, padding="same", activation="relu")(rows)
    found = tf.keras.layers.LayerNormalization()(found)
    found = tf.keras.layers.LSTM(5, unroll=False)(found)
    return tf.keras.Model(rows, tf.keras.layers.Dense(1)(found))


def unrolled() -> tf.keras.Model:
    """A GRU that was laid out step by step."""
    rows = tf.keras.Input((3, 4), name="rows")
    return tf.keras.Model(rows, tf.keras.layers.Dense(2)(tf.keras.layers.GRU(4, unroll=True)(rows)))


def calibration(model: tf.keras.Model):
    for _ in range(50):
        yield [RANDOM.normal(size=(1, *model.input_shape[1:])).astype(np.float32)]


def converted(model: tf.keras.Model, how: str) -> bytes:
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if how != "float":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if how.startswith("int8"):
        converter.representative_dataset = lambda: calibration(model)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if how == "int8-io":
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


def main() -> None:
    """Write every model, and the rows and outputs of those in float."""
    tf.keras.utils.set_random_seed(5)
    outputs = {}
    made = {"dense": dense(), "recurrent": recurrent(), "unrolled": unrolled()}
    for name, model in made.items():
        (HERE / f"{name}.tflite").write_bytes(converted(model, "float"))
        rows = RANDOM.normal(size=(16, *model.input_shape[1:])).astype(np.float32)
        found = [model(rows[at : at + 1]) for at in range(len(rows))]
        named = [one if isinstance(one, dict) else {"output_0": one} for one in found]
        outputs[name] = {
            "rows": rows.reshape(16, -1).tolist(),
            "outputs": {key: [one[key].numpy()[0].tolist() for one in named] for key in named[0]},
        }
    (HERE / "dense-int8.tflite").write_bytes(converted(made["dense"], "int8"))
    (HERE / "dense-int8-io.tflite").write_bytes(converted(made["dense"], "int8-io"))
    written = {"library_version": f"tensorflow {tf.__version__}", "models": outputs}
    (HERE / "outputs.json").write_text(json.dumps(written) + "\n")


if __name__ == "__main__":
    main()
