"""What it costs to import the package."""

import json
import subprocess
import sys

PROGRAM = """
import importlib, json, pkgutil, sys
import mmserver.experiments
for found in pkgutil.iter_modules(mmserver.experiments.__path__):
    importlib.import_module(f"mmserver.experiments.{found.name}")
print(json.dumps(sorted(sys.modules)))
"""


def test_no_module_of_it_imports_anything_heavy() -> None:
    answer = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120)
    modules = set(json.loads(answer.stdout))
    assert "mmserver.experiments.sequences" in modules
    assert modules.isdisjoint({"arch", "flask", "pandas", "scipy", "sklearn", "statsmodels", "xgboost"})


def test_assigning_a_unit_needs_the_standard_library_only() -> None:
    program = (
        "import json, sys, mmserver.experiments\n"
        "before = set(sys.modules)\n"
        "import mmserver.experiments.assignment\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    added = {name.partition(".")[0] for name in json.loads(answer.stdout)}
    assert added - {"mmserver"} <= set(sys.stdlib_module_names)
