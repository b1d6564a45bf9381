"""The models and the settings of the tests that read from servers."""

from tests.sources.remote.conftest import _own_settings, models

__all__ = ["_own_settings", "models"]
