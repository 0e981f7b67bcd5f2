"""Fetching what must not be lost: what is on its way to a caller that leaves is put back."""

from aioredis_monitored.fetching.fetch import FETCH, SETTLE_SECONDS, Fetch
from aioredis_monitored.fetching.fetched import fetched_at_once, fetched_on, fetched_waiting

__all__ = ["FETCH", "SETTLE_SECONDS", "Fetch", "fetched_at_once", "fetched_on", "fetched_waiting"]
