"""The models and the settings of the tests that read from servers."""

from tests.sources.remote.conftest import _no_proxy, models

__all__ = ["_no_proxy", "models"]
