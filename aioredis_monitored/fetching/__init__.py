"""Fetching what must not be lost: what is on its way to a caller that leaves is put back."""

from aioredis_monitored.fetching.aside import aside_of
from aioredis_monitored.fetching.fetch import FETCH, LONGEST_WAIT, SETTLE_SECONDS, Fetch
from aioredis_monitored.fetching.fetched import fetched_at_once, fetched_on, fetched_waiting, in_turns

__all__ = [
    "FETCH",
    "LONGEST_WAIT",
    "SETTLE_SECONDS",
    "Fetch",
    "aside_of",
    "fetched_at_once",
    "fetched_on",
    "fetched_waiting",
    "in_turns",
]
