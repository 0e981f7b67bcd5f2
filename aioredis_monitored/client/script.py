"""Scripts that are loaded where they are missing, in the operation that runs them."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, cast

from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError
from redis.typing import EncodableT, KeyT

from aioredis_monitored._execution.routing import Handle
from aioredis_monitored._telemetry.operation import NestedCall, Observer, Operation


class MonitoredScript(AsyncScript):
    """A script whose EVALSHA is one operation, in which a server that does not know the script yet is told it.

    That a server does not know it is no error: scripts go with every restart and failover.
    """

    async def __call__(
        self,
        keys: Sequence[KeyT] | None = None,
        args: Iterable[EncodableT] | None = None,
        client: Any = None,
    ) -> Any:
        """Run the script.

        Args:
            keys: Those that it touches.
            args: Its other arguments.
            client: Where to run it; default: on the client that has made it. A pipeline has it run with its batch.
        """
        client = self.registered_client if client is None else client
        if not isinstance(client, Handle) or client.is_replaced or not client.telemetry.is_enabled():
            return await super().__call__(keys, args, client)
        keys = keys or ()
        command = ("EVALSHA", self.sha, len(keys), *keys, *(args or ()))
        return await client.execute_as(command, {}, partial(self._run, client, command))

    async def run_within(self, operation: Observer | None, keys: Sequence[KeyT], *args: EncodableT) -> Any:
        """Run the script on its client without a record of its own.

        Args:
            operation: Learns how it goes, and is ended with the reply.
            keys: Those that it touches.
            args: Its other arguments.
        """
        command = ("EVALSHA", self.sha, len(keys), *keys, *args)
        return await self._run(cast("Handle", self.registered_client), command, operation)

    async def _run(self, client: Handle, command: tuple[Any, ...], operation: Observer | None) -> Any:
        try:
            return await client.execute_within(operation, *command)
        except NoScriptError:
            loading = NestedCall(operation) if isinstance(operation, Operation) else operation
            # As in redis-py, the server's word counts: its client may encode the text in another way.
            self.sha = await client.execute_within(loading, "SCRIPT LOAD", self.script)
        name, _, *arguments = command
        return await client.execute_within(operation, name, self.sha, *arguments)
