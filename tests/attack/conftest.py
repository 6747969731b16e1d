"""The fixtures of the rooms that are attacked."""

from tests.gateway.conftest import empty_registry, house, options, pictures  # noqa: F401
