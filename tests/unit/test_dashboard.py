"""The Grafana dashboard as a document: what its import form and provisioning need."""

import json
import re
from pathlib import Path

import aioredis_monitored

DASHBOARD = json.loads((Path(aioredis_monitored.__file__).parent / "dashboards" / "redis.json").read_text("utf-8"))


def test_dashboard_has_a_uid_so_that_a_newer_one_replaces_it():
    # https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
    assert re.fullmatch("[a-zA-Z0-9_-]{1,40}", DASHBOARD["uid"])
    assert "id" not in DASHBOARD


def test_dashboard_names_every_kind_of_panel_and_data_source_that_it_requires():
    required = {(each["type"], each["id"]) for each in DASHBOARD["__requires"]}
    panels = {("panel", panel["type"]) for panel in DASHBOARD["panels"] if panel["type"] != "row"}
    sources = {
        ("datasource", part["datasource"]["type"])
        for panel in DASHBOARD["panels"]
        for part in (panel, *panel.get("targets", ()))
        if "datasource" in part
    }

    assert required == {("grafana", "grafana"), *panels, *sources}


def test_dashboard_asks_for_its_data_source_by_a_variable_and_needs_no_input():
    (source,) = (each for each in DASHBOARD["templating"]["list"] if each["type"] == "datasource")
    used = set(re.findall(r'"uid": "([^"]*)"', json.dumps(DASHBOARD["panels"])))

    assert DASHBOARD["__inputs"] == []
    assert used == {f"${{{source['name']}}}"}
