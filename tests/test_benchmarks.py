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


def result(*runs):
    return Result.of(list(runs))


def at_128(client):
    return Cell(client, "get", MANY)


def test_the_verdict_compares_in_the_right_direction():
    run = Results(
        {
            at_128(BASE): result({"throughput": 10.0}),
            at_128("ours/no-sdk"): result({"throughput": 70.0}),
            at_128("ours/everything"): result({"throughput": 12.0, "cpu_us": 90.0}),
            at_128("sdk/plain"): result({"cpu_us": 75.0}),
            at_128("limit/hiredis"): result({"throughput": 200.0}),
        }
    )
    reached = {bound.text: (bound.reached(bound.must), bound.reached(bound.aim)) for bound in bounds(run)}

    assert ("6x: yes", "10x: NO") == reached["no SDK, 128 callers, throughput"]
    assert ("1.3x: NO", "1.5x: NO") == reached["every span recorded + duration metric, 128 callers"]
    assert ("20 µs: yes", "12 µs: NO") == reached["… client CPU per command beyond the SDK alone"]
    assert ("25%: yes", "45%: NO") == reached["no SDK, 128 callers, share of the limit"]
    assert ("2.5x: not measured", "3x: not measured") == reached["1 % sampled + duration metric, 128 callers"]
    assert "| no SDK, 128 callers, throughput | 7x | 6x: yes | 10x: NO |" in verdict(run)


def test_a_figure_is_the_median_of_the_runs_that_succeeded():
    figure = result({"cpu_us": 3.0}, {"failed": "why"}, {"cpu_us": 1.0}, {"cpu_us": 2.0})

    assert ({"cpu_us": 2.0}, ["why"]) == (figure.median, figure.failures)
    assert ({}, ["why"]) == result({"failed": "why"})[:2]


def test_what_is_compared_was_measured_in_the_same_repeat():
    one, other, broken = map(at_128, (BASE, "ours/no-sdk", "ours/otlp"))
    moods = [1.0, 2.0, 2.0, 1.0]
    run = Results(
        {
            one: result(*({"cpu_us": 10 * mood} for mood in moods)),
            other: result({"failed": "why"}, *({"cpu_us": 30 * mood} for mood in moods[1:])),
            broken: result(*[{"failed": "why"}] * 4),
        }
    )

    assert 3 == run.ratio(other, one, "cpu_us")
    assert 40 == run.difference(other, one, "cpu_us")
    assert [None, None] == [run.ratio(other, broken, "cpu_us"), run.ratio(at_128("glide/plain"), one, "cpu_us")]
