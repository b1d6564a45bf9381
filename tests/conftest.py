"""How Hypothesis is run, and the small model that most tests of commands take."""

from pathlib import Path

import pytest
from hypothesis import settings

from tests import vendor

# milliseconds for one example: seconds are a bomb, the default's 200 only a busy machine
settings.register_profile("tests", deadline=5000)
settings.load_profile("tests")


@pytest.fixture(scope="module")
def state() -> vendor.State:
    """Its tensors, as the vendor has them."""
    return vendor.state_dict(vendor.TINY)


@pytest.fixture(scope="module")
def model(state: vendor.State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of them, and nothing beside it."""
    return vendor.save(state, tmp_path_factory.mktemp("tiny") / "model.bin")


@pytest.fixture(scope="module")
def source(state: vendor.State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same beside its config.json."""
    folder = tmp_path_factory.mktemp("source")
    vendor.write_config(vendor.TINY, folder)
    return vendor.save(state, folder / "pytorch_model.bin")
