"""``python -m aioredis_monitored``."""

import sys

from aioredis_monitored.cli import main

sys.exit(main())
