"""Scripts that are loaded where the server does not know them, in the operation that runs them."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError
from redis.typing import EncodableT, KeyT

from aioredis_monitored._execution.routing import CommandExecutor, executor_of
from aioredis_monitored._telemetry.operation import NestedCall, Observer, Operation
from aioredis_monitored.pool.cluster import MonitoredClusterPool


class MonitoredScript(AsyncScript):
    """A script whose EVALSHA is one operation, which loads the script if the server does not know it.

    That is no error: a server forgets its scripts with every restart and failover.
    """

    async def __call__(
        self,
        keys: Sequence[KeyT] | None = None,
        args: Iterable[EncodableT] | None = None,
        client: Any = None,
    ) -> Any:
        """Run the script.

        Args:
            keys: The keys that it touches.
            args: Its other arguments.
            client: The client to run it on; default: the client that has made it. A pipeline runs it in its batch.
        """
        client = self.registered_client if client is None else client
        executor = executor_of(client)
        if executor is None:
            return await super().__call__(keys, args, client)
        is_on_cluster = isinstance(executor.pool, MonitoredClusterPool)
        overrides = executor.overrides_execute(client)
        if not is_on_cluster and (overrides or not executor.recorder.is_enabled()):
            return await super().__call__(keys, args, client)
        keys = keys or ()
        arguments = (len(keys), *keys, *(args or ()))
        if overrides:
            try:
                return await client.evalsha(self.sha, *arguments)
            except NoScriptError:
                return await client.eval(self.script, *arguments)
        command = ("EVALSHA", self.sha, *arguments)
        return await executor.execute_recorded(client, command, {}, partial(self._run, executor, client, command))

    async def _run(
        self, executor: CommandExecutor, client: Any, command: tuple[Any, ...], observer: Observer | None
    ) -> Any:
        try:
            return await executor.execute_part(client, observer, *command)
        except NoScriptError:
            if isinstance(executor.pool, MonitoredClusterPool):
                # SCRIPT LOAD might not reach the node that has answered: a slot's new node may be no known primary yet.
                return await executor.execute_part(client, observer, "EVAL", self.script, *command[2:])
            loading = NestedCall(observer) if isinstance(observer, Operation) else observer
            # The server's digest counts, as in redis-py: its client may encode the text in another way.
            self.sha = await executor.execute_part(client, loading, "SCRIPT LOAD", self.script)
        name, _, *arguments = command
        return await executor.execute_part(client, observer, name, self.sha, *arguments)
