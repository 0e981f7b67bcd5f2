"""The page about commands in a cluster says what the client does."""

import re
import shlex

import pytest
from support.example_modules import ROOT

from aioredis_monitored._topology.placement import REVIEWED, SPLIT, Kind, placement_of

PAGE = (ROOT / "docs" / "reference" / "cluster-commands.md").read_text("utf-8")
ROWS = re.findall(r"^\| `(.+?)` \| (.+?) \|", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("call", "goes_to"), ROWS, ids=[call for call, _ in ROWS])
def test_documented_call_goes_where_the_page_says(call, goes_to):
    assert goes_to == placement_of(shlex.split(call)).kind.value


def test_page_shows_every_kind_of_placement():
    shown = {Kind[name] for name in re.findall(r"\{placement-table\} (\w+)", PAGE)}
    in_rows = {placement_of(shlex.split(call)).kind for call, _ in ROWS}

    assert {placement.kind for placement in [*REVIEWED.values(), *SPLIT.values()]} - shown == {Kind.SLOT, Kind.CURSOR}
    assert set(Kind) == shown | in_rows
