"""One control plane serves all tests of a session, wherever they lie, but for those that need one of their own."""

import pytest

pytest_plugins = ["tests.cluster.harness.fixtures"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that look back on the others come last."""
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)
