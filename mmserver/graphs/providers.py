"""Which execution providers of ONNX Runtime run a model on this machine: a build may have one whose driver is not there."""

from collections.abc import Sequence

from mmserver.errors import Undecodable
from mmserver.graphs.sessions import CPU, open_session, runtime

KNOWN = (CPU, "CUDAExecutionProvider", "TensorrtExecutionProvider")
_DOUBLING = bytes.fromhex(
    "08083a3d0a0e0a01780a017812017922034164641201675a130a0178120e0a0c080112080a0208010a020801"
    "62130a0179120e0a0c080112080a0208010a02080142040a00100d"
)
"""A model that adds its one number to itself.

Source:
    onnx.proto3 of ONNX 1.16, opset 13: one Add from x to y, both float32 [1, 1].
"""


def provider_faults(wanted: Sequence[str]) -> dict[str, str | None]:
    """For each provider, by onnxruntime's name, why no model runs on it here; None where one does."""
    return {name: _fault(name) for name in wanted}


def _fault(name: str) -> str | None:
    if name not in runtime().get_available_providers():
        return "not in the installed build of onnxruntime"
    try:
        used = open_session(_DOUBLING, [name]).get_providers()
    except Undecodable as error:
        return f"installed, but it does not start: {error.detail}"
    return None if name in used else "installed, but it does not start: its libraries or its device are missing"
