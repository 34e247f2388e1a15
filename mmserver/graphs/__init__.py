"""ONNX graphs: what a file says of itself, how its rows are run, and the model that is made of it."""
