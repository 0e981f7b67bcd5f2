"""redis-py's lock, without its memory of the first client that ever made one."""

from redis.asyncio.lock import Lock


class MonitoredLock(Lock):
    """A lock whose scripts are its own.

    redis-py keeps them on the class, bound to the first client of the process, which keeps that client, its pool and
    its event loop alive.
    """

    def register_scripts(self) -> None:
        """Bind the three scripts to this lock's client."""
        # redis-py declares the three as None.
        self.lua_release = self.redis.register_script(self.LUA_RELEASE_SCRIPT)  # type: ignore[assignment]
        self.lua_extend = self.redis.register_script(self.LUA_EXTEND_SCRIPT)  # type: ignore[assignment]
        self.lua_reacquire = self.redis.register_script(self.LUA_REACQUIRE_SCRIPT)  # type: ignore[assignment]
