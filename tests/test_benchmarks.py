import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("calls", Path(__file__).parents[1] / "benchmarks" / "calls.py")
calls = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(calls)

# Function calls per GET, Python's and C's, on Python 3.11, which counts the most, and 5 % more: the same on every
# machine: what exceeds them has become slower.
COMMANDS = 640
MOST = {
    "no SDK, 1": 147,
    "no SDK, 128": 48,
    "metrics, 1": 259,
    "metrics, 128": 160,
    "everything, 1": 408,
    "everything, 128": 308,
}


@pytest.mark.slow
def test_a_command_costs_no_more_calls_than_it_did(server):
    counted = calls.calls_per_command(server.url, commands=COMMANDS)

    assert {} == {case: counted[case] for case, most in MOST.items() if counted[case] > most}
    assert counted["redis-py pool, 128"] > 8 * counted["no SDK, 128"]
