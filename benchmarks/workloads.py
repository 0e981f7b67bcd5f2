"""The callers' operations, in terms that every client supports, with the standard library alone."""

import random
import resource
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

SMALL, LARGE, HUGE = "bench:64", "bench:10k", "bench:1m"
SIZES = {SMALL: 64, LARGE: 10_000, HUGE: 1_000_000}
BATCH, LONG_BATCH = 4, 20
KEYS = [f"bench:{number}" for number in range(1000)]  # in all slots of a cluster

Operation = Callable[[], Awaitable[Any]]


class Client(NamedTuple):
    """A connected client as callers use it: bound methods, so that the benchmark adds the same cost to each."""

    version: str
    get: Callable[[str], Awaitable[Any]]
    set: Callable[[str, bytes], Awaitable[Any]]
    incr: Callable[[str], Awaitable[Any]]
    batch: Callable[[Sequence[str]], Awaitable[Any]]  # one pipeline without MULTI of GETs
    telemetry: Callable[[], dict[str, Any]] = dict  # called after the measurement


class Workload(NamedTuple):
    """The operations that each measured caller repeats, and one that unmeasured callers repeat at the same time."""

    operations: list[Operation]
    commands_per_call: float = 1
    background: Operation | None = None


def workload(name: str, client: Client, seed: int) -> Workload:
    """Return the workload with this name; the seed decides the order of its operations."""
    small, large = b"x" * SIZES[SMALL], b"x" * SIZES[LARGE]
    match name:
        case "get":
            return Workload([partial(client.get, SMALL)])
        case "10kB":
            return Workload([partial(client.get, LARGE), partial(client.set, LARGE, large)])
        case "mix":
            operations: list[Operation] = [
                *[partial(client.get, SMALL)] * 14,
                *[partial(client.set, SMALL, small)] * 4,
                partial(client.incr, "bench:counter"),
                partial(client.batch, [SMALL] * BATCH),
            ]
            random.Random(seed).shuffle(operations)  # noqa: S311 - not for security
            return Workload(operations, (len(operations) - 1 + BATCH) / len(operations))
        case "half":
            operations = [partial(client.get, key) for key in KEYS] + [partial(client.set, key, small) for key in KEYS]
            random.Random(seed).shuffle(operations)  # noqa: S311 - not for security
            return Workload(operations)
        case "batch":
            batches = [KEYS[start : start + LONG_BATCH] for start in range(0, len(KEYS), LONG_BATCH)]
            return Workload([partial(client.batch, keys) for keys in batches], LONG_BATCH)
        case "large":
            return Workload([partial(client.get, SMALL)], background=partial(client.get, HUGE))
    raise ValueError(f"no workload {name!r}")


async def check(client: Client) -> None:
    """Check the reply to each operation: a client with wrong replies may be fast.

    Raises:
        RuntimeError: A reply is wrong.
    """
    small, large = b"x" * SIZES[SMALL], b"x" * SIZES[LARGE]
    await client.set(SMALL, small)
    await client.set(LARGE, large)
    before = await client.incr("bench:counter")
    replies = {
        "GET": (await client.get(LARGE), large),
        "INCR": (await client.incr("bench:counter"), before + 1),
        "pipeline": (list(await client.batch([SMALL, LARGE, SMALL])), [small, large, small]),
    }
    wrong = [name for name, (reply, expected) in replies.items() if reply != expected]
    if wrong:
        raise RuntimeError(f"wrong replies to {', '.join(wrong)}")


def peak_memory_mb() -> float:
    """Return the peak of this process's memory in megabytes."""
    try:
        status = Path("/proc/self/status").read_text("ascii")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    # Not from getrusage: on Linux, a process inherits the peak of its parent.
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
