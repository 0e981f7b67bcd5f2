"""Fetching what must not be lost: what is on its way to a caller that leaves is put back."""

from aioredis_monitored.fetching.aside import aside_of
from aioredis_monitored.fetching.fetch import FETCH, SETTLE_SECONDS, Fetch
from aioredis_monitored.fetching.fetched import fetched_at_once, fetched_waiting
from aioredis_monitored.fetching.waiting import Waiting

__all__ = ["FETCH", "SETTLE_SECONDS", "Fetch", "Waiting", "aside_of", "fetched_at_once", "fetched_waiting"]
