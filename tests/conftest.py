"""One control plane serves all tests of a session, wherever they lie."""

pytest_plugins = ["tests.cluster.harness.fixtures"]
