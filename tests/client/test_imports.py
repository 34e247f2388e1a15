"""A bot gets the client alone: nothing of the server comes with it."""

import subprocess
import sys

CODE = """
import sys
from mmserver.client import ModelClient, SignalValidator, SyncModelClient
print(*sorted(name for name in sys.modules if name.startswith("mmserver") and not name.startswith("mmserver.client")))
print(*sorted({"flask", "sqlalchemy", "waitress", "xgboost", "onnxruntime", "pandas"} & sys.modules.keys()))
"""


def test_importing_the_client_imports_nothing_of_the_server() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split("\n") == ["mmserver", "", ""]
