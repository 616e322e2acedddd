"""The plugin in sessions of its own, as pytest finds it where revconn is installed."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

STRICT = ("-p", "no:randomly", "-p", "no:cacheprovider", "-W", "error")
# Plugins of other packages: a process of its own need not import them.
WITHOUT_OTHERS = tuple(f"-pno:{name}" for name in ("anyio", "hypothesispytest", "xdist"))


def run(pytester: pytest.Pytester, source: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(source)
    return pytester.runpytest_inprocess(*STRICT, *arguments)


def test_the_fixtures_are_there_without_an_import(pytester: pytest.Pytester) -> None:
    source = """
        from revconn import Connector

        def test_echo(revconn_gateway, revconn_faults):
            connector = Connector(revconn_gateway.address, api_key=revconn_gateway.api_key)
            connector.add_method("/echo.Echo/Say", lambda request: request.payload)
            with connector:
                revconn_gateway.wait_connected()
                assert revconn_gateway.call("/echo.Echo/Say", b"hello") == b"hello"
                assert revconn_gateway.faults is revconn_faults
        """
    run(pytester, source).assert_outcomes(passed=1)


def test_a_session_that_does_not_use_them_imports_nothing_of_revconn(
    pytester: pytest.Pytester,
) -> None:
    source = """
        import sys

        def test_nothing():
            assert "_revconn_pytest_plugin" in sys.modules
            assert {"revconn", "grpc", "google.protobuf", "hpack"}.isdisjoint(sys.modules)
        """
    pytester.makepyfile(source)
    pytester.runpytest_subprocess(*STRICT, *WITHOUT_OTHERS).assert_outcomes(passed=1)


def test_each_test_has_a_gateway_of_its_own_that_ends_with_it(pytester: pytest.Pytester) -> None:
    source = """
        import threading
        import pytest

        seen = []

        @pytest.mark.parametrize("number", range(3))
        def test_one(number, revconn_gateway):
            names = [thread.name for thread in threading.enumerate()]
            assert names.count("revconn-gateway") == 1
            seen.append(revconn_gateway)

        def test_nothing_is_left():
            assert len(set(map(id, seen))) == 3
            assert "revconn" not in str([thread.name for thread in threading.enumerate()])
        """
    # In a process of its own: this one may have gateways that serve a whole session.
    pytester.makepyfile(source)
    pytester.runpytest_subprocess(*STRICT, *WITHOUT_OTHERS).assert_outcomes(passed=4)


def test_a_gateway_with_options_may_take_the_place_of_the_usual_one(
    pytester: pytest.Pytester,
) -> None:
    source = """
        import pytest

        @pytest.fixture
        def revconn_gateway(make_revconn_gateway):
            return make_revconn_gateway(api_key="ours")

        def test_key(revconn_gateway, revconn_faults):
            assert revconn_gateway.api_key == "ours"
            assert revconn_gateway.faults is revconn_faults
        """
    run(pytester, source).assert_outcomes(passed=1)


def test_a_test_module_may_import_the_classes(pytester: pytest.Pytester) -> None:
    source = """
        from revconn.testing import Fault, FaultProxy, Faults, TestGateway

        def test_without_fixtures():
            with TestGateway() as gateway:
                assert gateway.connections() == ()
        """
    run(pytester, source).assert_outcomes(passed=1)


def test_it_can_be_switched_off(pytester: pytest.Pytester) -> None:
    result = run(pytester, "def test_x(revconn_gateway): ...", "-p", "no:revconn")
    result.stdout.fnmatch_lines(["*fixture 'revconn_gateway' not found*"])
