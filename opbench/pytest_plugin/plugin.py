"""The pytest plugin: a fixture `opbench_benchmark` that times device work inside pytest-benchmark.

pytest loads this in every session of whoever has opbench installed, so it imports nothing but pytest, and touches no
test that does not ask for the fixture.
"""

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from opbench.pytest_plugin.device_benchmark import DeviceBenchmark

__all__ = ["FIXTURE"]

FIXTURE = "opbench_benchmark"


def pytest_configure(config: pytest.Config) -> None:
    """Bring the fixture that fits: pytest-benchmark is not always there, and can be turned off."""
    there = config.pluginmanager.hasplugin("benchmark")
    config.pluginmanager.register(_WithBenchmark() if there else _WithoutBenchmark(), "opbench-fixture")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each test that asks for the fixture a clock; pytest-benchmark takes it from the marker."""
    if not config.pluginmanager.hasplugin("benchmark"):
        return
    for item in items:
        if FIXTURE in getattr(item, "fixturenames", ()):
            from opbench.pytest_plugin.device_benchmark import DeviceClock

            marker = item.get_closest_marker("benchmark")
            options: dict[str, Any] = {"timer": DeviceClock(), **(marker.kwargs if marker else {})}
            item.add_marker(pytest.mark.benchmark(**options), append=False)


class _WithBenchmark:
    @pytest.fixture(name=FIXTURE)
    def opbench_benchmark(self, request: pytest.FixtureRequest, benchmark: Any) -> "DeviceBenchmark":  # noqa: ANN401
        """Time device work with pytest-benchmark: CUDA events on a GPU, the wall clock on the CPU."""
        from opbench.pytest_plugin.device_benchmark import DeviceBenchmark, DeviceClock

        clock = request.node.get_closest_marker("benchmark").kwargs["timer"]
        if not isinstance(clock, DeviceClock):
            pytest.fail(f"{FIXTURE} brings its own timer: take `timer` out of the benchmark marker", pytrace=False)
        return DeviceBenchmark(benchmark, clock)


class _WithoutBenchmark:
    @pytest.fixture(name=FIXTURE)
    def opbench_benchmark(self) -> None:
        """Time device work with pytest-benchmark, which is not there."""
        pytest.fail(f"{FIXTURE} needs pytest-benchmark: pip install pytest-benchmark", pytrace=False)
