"""A queue's consumers are killed while its slot moves and its primaries are replaced; and the program that does it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support import cluster_queue_chaos as chaos

ASKED = chaos.parsed(["--messages=1000", "--kills=3", "--migrations=2", "--failovers=2", "--primary-kills=1"])
IN_ORDER = chaos.Figures(
    put=1000,
    acknowledged=998,
    confirmed=990,
    processed=998,
    acknowledged_lost=1,
    duplicates=5,
    consumer_kills=3,
    migrations=2,
    failovers=2,
    primary_kills=1,
)


def run(*words):
    """Run the program; return its exit code and figures."""
    command = [sys.executable, chaos.__file__, *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])}
    done = subprocess.run(  # noqa: S603 - this Python
        command, stdout=subprocess.PIPE, text=True, timeout=300, check=False, env=environment
    )
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(330)
@pytest.mark.parametrize(
    "words",
    [
        "--kills=6 --migrations=4 --failovers=2 --primary-kills=0",
        "--kills=4 --migrations=2 --failovers=1 --primary-kills=2",
    ],
    ids=["slots move", "primaries die"],
)
def test_queue_in_a_cluster_loses_nothing_that_a_replica_has_confirmed(words):
    code, figures = run("--messages=1500", "--seconds=20", "--patience=60", *words.split())

    print(figures)
    assert ([], 0) == (figures["failures"], code), figures


def test_chaos_check_accepts_correct_figures():
    assert [] == chaos.failures(IN_ORDER, ASKED)


@pytest.mark.parametrize(
    ("wrong", "expected_failures"),
    [
        ({"put": 999}, ["put: 999 instead of 1000"]),
        ({"confirmed_lost": 1}, ["confirmed_lost: 1 instead of 0"]),
        ({"duplicates": 6}, ["duplicates: 6, more than 5"]),
        ({"confirmed": 499}, ["confirmed: 499, less than half of the messages"]),
        ({"consumer_kills": 2}, ["consumer_kills: 2 instead of 3"]),
        ({"migrations": 1}, ["migrations: 1 instead of 2"]),
        ({"failovers": 1}, ["failovers: 1 instead of 2"]),
        ({"primary_kills": 0}, ["primary_kills: 0 instead of 1"]),
        ({"crashes": 1}, ["crashes: 1 instead of 0"]),
    ],
    ids=str,
)
def test_chaos_check_rejects_each_wrong_figure(wrong, expected_failures):
    assert expected_failures == chaos.failures(replace(IN_ORDER, **wrong), ASKED)


def test_chaos_check_rejects_any_loss_if_no_primary_was_killed():
    asked = chaos.parsed(["--messages=1000", "--kills=3", "--migrations=2", "--failovers=2", "--primary-kills=0"])

    assert ["acknowledged_lost: 1 instead of 0"] == chaos.failures(replace(IN_ORDER, primary_kills=0), asked)
