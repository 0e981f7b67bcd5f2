"""The benchmarks' bounds, the function calls per command, equal on every machine, and small runs of two of them."""

import sys
from argparse import Namespace
from contextlib import nullcontext
from operator import itemgetter
from types import SimpleNamespace

import calls
import cluster_matrix
import cluster_report
import cluster_run
import pytest
import queue_matrix
import queue_run
import recording
from bench import Bench, connections_to
from figures import LATENCIES, MAX_PROBE_RATIO, MEDIANS, MIN_REPEATS, MIN_SLICES, Result, Results
from matrix import BASE, MANY, Cell
from queue_driver import check
from queue_report import missed
from queue_run import command
from redis import Redis
from telemetry import Recorder
from verdict import bounds, verdict

from aioredis_monitored.testing import ClusterServers

# Function calls per GET, Python's and C's, on Python 3.11, which has the most, plus 5 %. They are equal on every
# machine: more of them means slower code.
COMMANDS = 640
MOST = {
    "no SDK, 1": 144,
    "no SDK, 128": 42,
    "metrics, 1": 181,
    "metrics, 128": 63,
    "everything, 1": 222,
    "everything, 128": 87,
    "cluster, no SDK, 1": 150,
    "cluster, no SDK, 128": 48,
    "cluster, metrics, 1": 188,
    "cluster, metrics, 128": 70,
    "cluster, everything, 1": 229,
    "cluster, everything, 128": 95,
}


@pytest.mark.slow
def test_command_stays_within_function_call_budget(server):
    with ClusterServers(primaries=1, replicas=0) as cluster:
        counted = calls.calls_per_command(server.url, cluster.url, commands=COMMANDS)

    assert {} == {case: counted[case] for case, most in MOST.items() if counted[case] > most}
    assert counted["redis-py pool, 128"] > 8 * counted["no SDK, 128"]


def measured(*, slices=((0, 1.0, 1, 1, 1),), stolen=0, probe_ms=1.0, **figures):
    """Return what the driver prints for one repeat."""
    return {
        "slices": slices,
        "stolen": stolen,
        "probe_ms": probe_ms,
        **dict.fromkeys((*LATENCIES, *MEDIANS), 1),
        **figures,
    }


def result(throughput=1.0, cpu_us=1.0):
    return Result.of([measured(slices=[(0, 1.0, throughput, 1, throughput * cpu_us / 1e6)])])


def at_128(client):
    return Cell(client, "get", MANY)


def test_verdict_compares_ratios_in_right_direction():
    run = Results(
        {
            at_128(BASE): result(10),
            at_128("ours/no-sdk"): result(90),
            at_128("ours/everything"): result(12, cpu_us=90),
            at_128("sdk/plain"): result(cpu_us=75),
            at_128("limit/hiredis"): result(200),
        }
    )
    metadata = {"recording": {"no SDK": 0.2, "metrics": 4.2, "everything": -6}}
    reached = {bound.text: (bound.describe(bound.must), bound.describe(bound.aim)) for bound in bounds(metadata, run)}

    assert ("9x: yes", "10x: NO") == reached["no SDK, 128 callers"]
    assert ("2.5x: NO", "3.2x: NO") == reached["every span + metrics, 128 callers"]
    assert ("0 µs: NO", "") == reached["client CPU of a span and a point beyond the SDK alone"]
    assert ("25%: yes", "45%: yes") == reached["no SDK, 128 callers, share of the limit"]
    assert ("5x: not measured", "6.5x: not measured") == reached["1 % of traces + metrics, 128 callers"]
    assert ("0 µs: NO", "") == reached["… beyond the SDK's point"]
    assert ("0 µs: yes", "") == reached["… beyond the SDK's span and point"]
    assert "| no SDK, 128 callers | 9x | 9x: yes | 10x: NO |" in verdict(metadata, run)
    assert "| … beyond the SDK's point | - | 0 µs: not measured |  |" in verdict({"recording": "failed: why"}, run)


def test_throughput_and_cpu_use_undisturbed_slices():
    undisturbed = [(0, 1.0, 100, 1.0, 0.5), (0, 0.99 * MAX_PROBE_RATIO, 300, 1.0, 0.5)] * MIN_SLICES
    # They are faster and cheaper, which must not select them.
    disturbed = [(0, 1.01 * MAX_PROBE_RATIO, 9000, 0.1, 0.001), (1, 1.0, 9000, 0.1, 0.001)] * MIN_SLICES
    runs = [measured(slices=disturbed[3:] + undisturbed[3:]), measured(slices=undisturbed[:3] + disturbed[:3])]
    figures = Results.of({at_128(BASE): runs})[at_128(BASE)].figures

    assert (200, 2500, 2 * MIN_SLICES) == itemgetter("throughput", "cpu_us", "undisturbed")(figures)


def test_disturbed_run_uses_quickest_slices_and_is_marked():
    clients = (BASE, "ours/no-sdk", "ours/metrics", "ours/everything", "ours/otlp")
    quick, slow, stolen, late, failed = map(at_128, clients)
    runs = {
        quick: [measured(slices=[(0, 1.0, 1, 1, 1)] * MIN_SLICES)] * MIN_REPEATS,
        slow: [
            measured(slices=[(0, 1.0, 1, 1, 1)] * (MIN_SLICES - 2) + [(0, 1.5, 11, 1, 1)] * 2 + [(0, 2.0, 9000, 1, 1)])
        ],
        stolen: [measured(slices=[(1, 1.0, 1, 1, 1)] * MIN_SLICES)] * MIN_REPEATS,
        late: [measured(slices=[(0, 1.0, 1, 1, 1)] * MIN_SLICES, probe_ms=1.01 * MAX_PROBE_RATIO)] * MIN_REPEATS,
        failed: [{"failed": "why"}],
    }
    results = Results.of(runs)

    assert [slow, stolen, late] == results.disturbed()
    assert 2 == results.figure(slow)


def test_latencies_use_undisturbed_repeats_only():
    quick = [measured(probe_ms=1.0, p99_ms=p99, memory_mb=10) for p99 in (5, 6, 7, 8, 9)]
    slow = [measured(probe_ms=3.0, p99_ms=1, memory_mb=20)] * 4 + [measured(stolen=1, p99_ms=1, memory_mb=20)] * 4

    assert (7, 20) == itemgetter("p99_ms", "memory_mb")(Result.of(slow + quick, 1.0).figures)
    assert (6, 20) == itemgetter("p99_ms", "memory_mb")(Result.of(slow + quick[:3], 1.0).figures)


def test_failed_repeat_contributes_no_figures():
    failed, broken = {"failed": "why"}, at_128("ours/otlp")
    run = Results({at_128(BASE): result(10), broken: Result.of([failed] * 2)})

    assert (["why"], 1) == (
        Result.of([failed, measured()]).failures,
        Result.of([failed, measured()]).figures["throughput"],
    )
    assert (True, False) == (run.failed(broken), run.failed(at_128(BASE)))
    assert [None, None] == [run.ratio(at_128(BASE), broken), run.difference(at_128("glide/plain"), broken, "cpu_us")]


def queues(**throughputs):
    """Return a run in which the named queues had this throughput with 32 consumers."""
    names = {"blpop": queue_matrix.BASE, "arq": "arq/worker", "SAQ": "saq/worker"}
    names |= {"taskiq": "taskiq/stream", "streaQ": "streaq/worker"}
    found = {names.get(name, f"ours/{name}"): throughput for name, throughput in throughputs.items()}
    return Results({Cell(client, "consume", queue_matrix.MANY): result(found[client]) for client in found})


ENOUGH = {"blpop": 100, "get": 250, "take": 100, "take_many": 300, "arq": 20, "SAQ": 20, "taskiq": 20, "streaQ": 20}


@pytest.mark.parametrize(
    ("name", "throughput", "expected"),
    [
        ("get", 249, "get by redis-py's BLPOP"),
        ("take", 99, "take by redis-py's BLPOP, which acknowledges nothing"),
        ("take_many", 299, "take_many of 100 by redis-py's BLPOP"),
        ("arq", 26, "take by arq"),
        ("SAQ", 26, "take by SAQ"),
        ("taskiq", 26, "take by taskiq-redis, RedisStreamBroker"),
        ("streaQ", 26, "take by streaQ"),
    ],
)
def test_queue_verdict_names_missed_bound(name, throughput, expected):
    assert [] == missed(queues(**ENOUGH), is_part=False)
    assert [expected] == missed(queues(**{**ENOUGH, name: throughput}), is_part=False)


def test_queue_verdict_fails_for_unmeasured_bound_in_full_run():
    part = queues(**{name: ENOUGH[name] for name in ENOUGH if name != "SAQ"})

    assert ["take by SAQ"] == missed(part, is_part=False)
    assert [] == missed(part, is_part=True)
    assert 7 == len(missed(Results(), is_part=False))


@pytest.fixture
def run_benchmark(monkeypatch, server, inspector):
    """Run the queue's benchmark on given results, without measuring or writing."""

    def run(found, *arguments):
        monkeypatch.setattr("sys.argv", ["queue_run.py", *arguments])
        monkeypatch.setattr("queue_run.benchmark_server", lambda: nullcontext((server.url, inspector)))
        monkeypatch.setattr("queue_run.write", lambda *_: "nowhere")
        monkeypatch.setattr(Bench, "run", lambda *_: found)
        queue_run.main()

    return run


def test_queue_benchmark_exits_when_bound_is_missed(run_benchmark, capsys):
    run_benchmark(queues(**ENOUGH))
    assert "| take by SAQ | 5x | 4x: yes |  |" in capsys.readouterr().out

    with pytest.raises(SystemExit, match=r"^missed: get by redis-py's BLPOP$"):
        run_benchmark(queues(**{**ENOUGH, "get": 249}))


@pytest.mark.parametrize(
    ("handled", "expected"), [([1, 2, 2], "3 messages handled, 2 different, of 2 put"), ([1], "of 2")]
)
def test_queue_check_raises_on_repeated_or_lost_messages(handled, expected):
    check([2, 1], [b"1", b"2"])

    with pytest.raises(RuntimeError, match=expected):
        check(handled, [b"1", b"2"])


def test_recording_benchmark_records_every_command():
    recorder = Recorder(spans=True, metrics=True)

    recording.difference(recorder, rounds=1)

    # The client's commands, and as many that only make the SDK's calls.
    expected = 2 * recording.COMMANDS
    assert {"points": expected, "exemplars": True, "spans": expected} == {
        name: value for name, value in recorder.finish().items() if name in {"points", "exemplars", "spans"}
    }


@pytest.mark.slow
def test_queue_benchmark_measures_every_kind_of_cell(own_server, monkeypatch):
    # The scripts import each other from their directory.
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    # Most slices are disturbed here, which does not matter: only the figures' presence is checked.
    asked = Namespace(repeats=1, minutes=0, seed=1)
    cells = [
        Cell(queue_matrix.BASE, "consume", 2),
        Cell("ours/get", "consume", 2),
        Cell("ours/put", "produce", 2),
        Cell("ours/get", "latency", 2),
        Cell("arq/worker", "consume", 2),
    ]
    with Redis.from_url(own_server.url) as inspector:
        bench = Bench(
            connections_to(inspector), queue_matrix.CONTESTANTS, lambda cell: command(cell, own_server.url, 0.2), asked
        )
        monkeypatch.setattr("bench.pythons", lambda _: ({"current": sys.executable}, {"arq": "no such package"}))
        results = bench.run(cells)

    *measured, latency, peer = (results[cell] for cell in cells)
    assert [] == [found for found in (*measured, latency) if found.failures]
    assert ["no environment: no such package"] == peer.failures
    assert all(found.figures[name] > 0 for found in measured for name in ("throughput", "cpu_us", "server_us"))
    assert 0 < latency.figures["p50_ms"] <= latency.figures["p99_ms"]


def on_cluster(ours=None, **throughputs):
    """Return a run on a cluster in which clients had this throughput in each cell; ``ours`` names cells of our own."""
    clients = {
        "redis_py": cluster_matrix.BASE,
        "glide": cluster_matrix.GLIDE,
        "alone": cluster_matrix.ALONE,
        "default": cluster_matrix.OURS,
    }
    found = {
        Cell(clients[name], workload, callers): result(throughput)
        for name, throughput in throughputs.items()
        for workload, callers in (("half", 1), ("half", MANY), ("half", 1024), ("batch", cluster_matrix.BATCH_CALLERS))
    }
    return Results(
        {**found, **{Cell(cluster_matrix.OURS, *cell): result(figure) for cell, figure in (ours or {}).items()}}
    )


ENOUGH_ON_CLUSTER = {"default": 50, "redis_py": 10, "glide": 25, "alone": 66}


@pytest.mark.parametrize(
    ("cell", "throughput", "expected"),
    [
        (("half", 1), 9.9, ["1 caller, by redis-py's RedisCluster"]),
        (
            ("half", MANY),
            49,
            [
                "128 callers, by redis-py's RedisCluster",
                "128 callers, by valkey-glide",
                "128 callers, by this client on one server",
            ],
        ),
        (("half", 1024), 49, ["1,024 callers, by redis-py's RedisCluster", "1,024 callers, by valkey-glide"]),
        (("batch", cluster_matrix.BATCH_CALLERS), 17, ["pipelines of 20 in all slots, by redis-py's RedisCluster"]),
    ],
)
def test_cluster_verdict_names_missed_bounds(cell, throughput, expected):
    assert [] == cluster_report.missed(on_cluster(**ENOUGH_ON_CLUSTER), is_part=False)
    assert expected == cluster_report.missed(on_cluster({cell: throughput}, **ENOUGH_ON_CLUSTER), is_part=False)


def test_cluster_verdict_fails_for_unmeasured_bound_in_full_run():
    part = on_cluster(default=50, redis_py=10, glide=25)

    assert ["128 callers, by this client on one server"] == cluster_report.missed(part, is_part=False)
    assert [] == cluster_report.missed(part, is_part=True)


def test_cluster_benchmark_exits_when_bound_is_missed_in_full_run(monkeypatch, server, capsys, tmp_path):
    servers = cluster_run.Servers({}, server.url, [])
    monkeypatch.setattr("cluster_run.benchmark_servers", lambda _: nullcontext(servers))
    monkeypatch.setattr("cluster_run.write", lambda *_: tmp_path)
    monkeypatch.setitem(sys.modules, "plot", SimpleNamespace(plot=lambda *_: None))
    found = on_cluster({("half", 1): 9.9}, **ENOUGH_ON_CLUSTER)
    monkeypatch.setattr(Bench, "run", lambda *_: found)

    monkeypatch.setattr("sys.argv", ["cluster_run.py", "--quick"])
    cluster_run.main()
    assert "| 1 caller, by redis-py's RedisCluster | 0.99x | 1x: NO |  |" in capsys.readouterr().out

    monkeypatch.setattr("sys.argv", ["cluster_run.py"])
    with pytest.raises(SystemExit, match=r"^missed: 1 caller, by redis-py's RedisCluster$"):
        cluster_run.main()


@pytest.mark.slow
def test_cluster_benchmark_measures_every_kind_of_cell(monkeypatch):
    # The scripts import each other from their directory.
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    # As above, only the figures' presence is checked.
    asked = Namespace(repeats=1, minutes=0, seed=1, seconds=0.2)
    cells = [
        Cell(cluster_matrix.BASE, "half", 2),
        Cell(cluster_matrix.OURS, "half", 2),
        Cell(cluster_matrix.ALONE, "half", 2),
        Cell(cluster_matrix.BASE, "batch", 2),
        Cell(cluster_matrix.OURS, "batch", 2),
        Cell(cluster_matrix.GLIDE, "half", 2),
    ]
    settings = {cluster_matrix.SETTINGS[cell.workload] for cell in cells}
    with cluster_run.benchmark_servers(settings) as servers:
        bench = Bench(
            connections_to(*servers.clients),
            cluster_matrix.CONTESTANTS,
            lambda cell: cluster_run.command(cell, servers, asked),
            asked,
        )
        monkeypatch.setattr("bench.pythons", lambda _: ({"current": sys.executable}, {"glide": "no such package"}))
        results = bench.run(cells)

    *measured, peer = (results[cell] for cell in cells)
    assert [] == [found for found in measured if found.failures]
    assert ["no environment: no such package"] == peer.failures
    assert all(found.figures[name] > 0 for found in measured for name in ("throughput", "cpu_us", "p50_ms"))
