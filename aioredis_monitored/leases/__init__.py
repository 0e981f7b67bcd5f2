"""Messages that are held: Redis knows by whom, and what the dead have held is brought back."""

from aioredis_monitored.leases.consumer import Consumer, Terms
from aioredis_monitored.leases.keys import Keys
from aioredis_monitored.leases.leases import Leases
from aioredis_monitored.leases.scripts import HEAD, REVIVE, TAIL
from aioredis_monitored.leases.taking import Taking

__all__ = ["HEAD", "REVIVE", "TAIL", "Consumer", "Keys", "Leases", "Taking", "Terms"]
