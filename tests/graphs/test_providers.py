"""Which execution providers run a model here."""

import pytest

from mmserver.graphs.providers import KNOWN, provider_faults
from mmserver.graphs.sessions import CPU, runtime


def test_the_processor_runs_models_and_a_provider_that_is_not_installed_is_said_not_to() -> None:
    assert provider_faults([CPU, "NoSuchExecutionProvider"]) == {
        CPU: None,
        "NoSuchExecutionProvider": "not in the installed build of onnxruntime",
    }


@pytest.mark.parametrize("name", KNOWN)
def test_only_a_provider_of_the_installed_build_can_run_models(name: str) -> None:
    is_installed = name in runtime().get_available_providers()
    assert is_installed or provider_faults([name])[name] is not None
