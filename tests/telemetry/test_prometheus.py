"""The dashboard and the alerts: a real Prometheus scrapes the demo's shop, and every query returns numbers."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from support.internals import BLOCKING_COMMANDS

import aioredis_monitored
from aioredis_monitored._commands.table import TABLE

SUPPORT = Path(__file__).parents[1] / "support"
DASHBOARDS = Path(aioredis_monitored.__file__).parent / "dashboards"
DASHBOARD = json.loads((DASHBOARDS / "redis.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = (DASHBOARDS / "alerts.yml").read_text("utf-8")
# As Grafana substitutes them: several values become alternatives of a regular expression, with escapes.
VARIABLES = {"$__rate_interval": "10s", "$job": "shop", "$pool": r"(redis|redis\\.statistics|small|sharded)"}
DEADLINE = 60.0

pytestmark = pytest.mark.slow  # and the same on every Python, server and event loop


def program(name):
    found = shutil.which(name)
    if found is None:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up(f"{name} is not on PATH: Debian and Ubuntu have it in their package prometheus")
    return found


def wait_until_empty(look):
    """Poll until nothing is amiss or the deadline has passed; return what is still amiss."""
    deadline = time.monotonic() + DEADLINE
    while (amiss := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return amiss


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    """Yield the API of a Prometheus that scrapes the shop and has the alerts; one per module, as it starts slowly."""
    binary, directory = program("prometheus"), tmp_path_factory.mktemp("prometheus")
    log = directory / "log"
    shop_command = [sys.executable, str(SUPPORT / "scraped_shop.py")]
    # The end of the block closes the shop's stdin, which ends it.
    with subprocess.Popen(shop_command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shop:  # noqa: S603 - this Python
        target = f"127.0.0.1:{int(shop.stdout.readline())}"
        configuration = {  # JSON is YAML, too
            # A scrape may take as long as the interval.
            "global": {"scrape_interval": "2s", "evaluation_interval": "200ms"},
            "rule_files": [str(DASHBOARDS / "alerts.yml")],
            "scrape_configs": [{"job_name": "shop", "static_configs": [{"targets": [target]}]}],
        }
        (directory / "prometheus.yml").write_text(json.dumps(configuration))
        command = [
            binary,
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            "--web.listen-address=127.0.0.1:0",
        ]
        with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as server:  # noqa: S603 - Debian's
            try:
                listening = re.compile(r'"Listening on".* address=(\S+)')
                assert not wait_until_empty(lambda: not listening.search(log.read_text())), log.read_text()
                (address,) = listening.findall(log.read_text())
                with httpx2.Client(base_url=f"http://{address}/api/v1/") as api:
                    assert not wait_until_empty(lambda: not api.get(f"http://{address}/-/ready").is_success)
                    yield api
            finally:
                server.terminate()


def series_of(api, query):
    return api.get("query", params={"query": query}).raise_for_status().json()["data"]["result"]


def values(api, query):
    found = [float(series["value"][1]) for series in series_of(api, query)]
    return [value for value in found if not math.isnan(value)]


def without_numbers(api, queries):
    return wait_until_empty(lambda: {name: query for name, query in queries.items() if not values(api, query)})


def substituted(text):
    for variable, value in VARIABLES.items():
        text = text.replace(variable, value)
    return text


def rules(api):
    return [rule for group in api.get("rules").json()["data"]["groups"] for rule in group["rules"]]


def test_dashboard_queries_return_numbers(prometheus):
    queries = {
        f"{panel['title']} {target['refId']}": substituted(target["expr"])
        for panel in PANELS
        for target in panel["targets"]
    }

    assert len(queries) > len(PANELS)
    assert {} == without_numbers(prometheus, queries)


def test_dashboard_variables_have_values(prometheus):
    queries = {variable["name"]: variable["query"] for variable in DASHBOARD["templating"]["list"]}

    def missing(name, expected):
        series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", queries[name]).groups()
        answer = prometheus.get(f"label/{label}/values", params={"match[]": substituted(series)})
        return expected - set(answer.json()["data"])

    assert ["datasource", "job", "pool"] == list(queries)
    assert set() == wait_until_empty(lambda: missing("job", {"shop"}) | missing("pool", {"redis", "small", "sharded"}))


def test_alert_operands_return_numbers(prometheus):
    assert not wait_until_empty(lambda: [] == rules(prometheus))
    # This Prometheus has no data from ten minutes ago.
    queries = {
        f"{rule['name']}: {part}": part.replace(" offset 10m", "")
        for rule in rules(prometheus)
        for part in re.split(r" (?:>=|>|<|and) ", rule["query"])
        if not re.fullmatch(r"[0-9.]+", part)
    }

    assert 19 == len(queries)
    assert {} == without_numbers(prometheus, queries)


def test_alerts_are_healthy_and_summary_names_pool_and_server(prometheus):
    def unhealthy():
        return {rule["name"]: rule["health"] for rule in rules(prometheus) if rule["health"] != "ok"}

    def alert_is_missing():
        summaries = {alert["annotations"]["summary"] for alert in prometheus.get("alerts").json()["data"]["alerts"]}
        return not any(re.fullmatch(r"Callers of pool small of 127.0.0.1:\d+ give up .*", text) for text in summaries)

    assert not wait_until_empty(alert_is_missing)
    assert {} == wait_until_empty(unhealthy)


def test_cancelled_command_is_exported_but_not_in_errors_panel(prometheus):
    cancelled = 'db_client_operation_duration_seconds_count{error_type="asyncio.exceptions.CancelledError"}'
    assert {} == without_numbers(prometheus, {"cancelled": cancelled})
    (errors,) = (panel["targets"][0]["expr"] for panel in PANELS if panel["title"] == "Errors")

    def types():
        return {series["metric"]["error_type"] for series in series_of(prometheus, substituted(errors))}

    assert not wait_until_empty(lambda: {"WRONGTYPE", "aioredis_monitored.PoolExhaustedError"} - types())
    assert "asyncio.exceptions.CancelledError" not in types()


def test_waiting_consumer_exports_blocking_command_name(prometheus):
    """Latency excludes blocking commands, as another test shows."""
    waited = 'db_client_operation_duration_seconds_count{db_operation_name="%s"}'

    assert {} == without_numbers(prometheus, {name: waited % name for name in ("BLMOVE", "BLPOP")})


def promtool(*arguments):
    return subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False)  # noqa: S603 - Debian's


def test_alert_rules_pass_promtool_check():
    result = promtool("check", "rules", str(DASHBOARDS / "alerts.yml"))

    assert 0 == result.returncode, result.stdout + result.stderr


def test_alert_rules_pass_promtool_unit_tests(tmp_path):
    """The files are side by side in one directory, as the package may be installed elsewhere."""
    for path in (DASHBOARDS / "alerts.yml", SUPPORT / "alerts_test.yml"):
        shutil.copy(path, tmp_path)
    result = promtool("test", "rules", str(tmp_path / "alerts_test.yml"))

    assert 0 == result.returncode, result.stdout + result.stderr
    cases = (tmp_path / "alerts_test.yml").read_text("utf-8")
    assert set(re.findall(r"alert: (\w+)", ALERTS)) == set(re.findall(r"alertname=\"(\w+)\"", cases))


def test_latency_queries_exclude_exactly_blocking_commands():
    patterns = re.findall(r'db_operation_name!~\\?"([^"\\]+)\\?"', ALERTS + json.dumps(DASHBOARD))
    names = {*TABLE, *BLOCKING_COMMANDS}

    assert 2 == len(patterns)
    for pattern in patterns:
        left_out = {name for name in names if re.fullmatch(pattern, name)}
        assert set(BLOCKING_COMMANDS) == left_out
        assert all(re.fullmatch(pattern, text) for name in left_out for text in (name.lower(), f"PIPELINE {name}"))


def test_dashboard_panels_have_unit_and_one_sentence_description():
    units = {panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS}

    assert {"s", "reqps", "cps", "percentunit", "short"} == units
    assert {"timeseries"} == {panel["type"] for panel in PANELS}
    assert [] == [panel["title"] for panel in PANELS if not re.fullmatch(r"[A-Z][^\n]+[^.]\.", panel["description"])]
    assert [] == [panel["title"] for panel in PANELS if panel["datasource"]["uid"] != "${datasource}"]
