"""Messages that are held: Redis knows by whom, and what the dead have held is brought back."""

from aioredis_monitored.leases.consumer import Consumer, Terms
from aioredis_monitored.leases.keys import Keys
from aioredis_monitored.leases.leases import Leases

__all__ = ["Consumer", "Keys", "Leases", "Terms"]
