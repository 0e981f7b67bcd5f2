"""The benchmark's verdict, and the one figure of it that is the same on every machine."""

import calls
import pytest
from figures import Result, Results
from matrix import BASE, MANY, Cell
from verdict import bounds, verdict

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


def results(**medians):
    """Results of cells at 128 callers: figures by client, an underscore for the slash."""
    return Results(
        {
            Cell(client.replace("_", "/", 1), "get", MANY if "sdk_" not in client else 1): Result(figures, [], [])
            for client, figures in medians.items()
        }
    )


def test_the_verdict_compares_in_the_right_direction():
    run = results(
        **{
            "ours_no-sdk": {"throughput": 70.0},
            "ours_everything": {"throughput": 12.0, "cpu_us": 90.0},
            "sdk_plain": {"cpu_us": 75.0},
            "limit_hiredis": {"throughput": 200.0},
        }
    )
    run[Cell(BASE, "get", MANY)] = Result({"throughput": 10.0}, [], [])
    reached = {bound.text: (bound.reached(bound.must), bound.reached(bound.aim)) for bound in bounds(run)}

    assert ("6x: yes", "10x: NO") == reached["no SDK, 128 callers, throughput"]
    assert ("1.3x: NO", "1.5x: NO") == reached["every span recorded + duration metric, 128 callers"]
    assert ("20 µs: yes", "12 µs: NO") == reached["… client CPU per command beyond the SDK alone"]
    assert ("25%: yes", "45%: NO") == reached["no SDK, 128 callers, share of the limit"]
    assert ("2.5x: not measured", "3x: not measured") == reached["1 % sampled + duration metric, 128 callers"]
    assert "| no SDK, 128 callers, throughput | 7x | 6x: yes | 10x: NO |" in verdict(run)


def test_a_figure_is_the_median_of_the_runs_that_succeeded():
    result = Result.of([{"cpu_us": 3.0}, {"failed": "why"}, {"cpu_us": 1.0}, {"cpu_us": 2.0}])

    assert ({"cpu_us": 2.0}, ["why"]) == (result.median, result.failures)
    assert ({}, ["why"]) == Result.of([{"failed": "why"}])[:2]
