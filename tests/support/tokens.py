"""Tokens that a real server accepts for a time: an authority that makes a user for each, and deletes it."""

import asyncio
import itertools
import logging
import threading
import time

import redis.exceptions
from redis.auth.err import RequestTokenErr
from redis.auth.idp import IdentityProviderInterface
from redis.auth.token import SimpleToken

# redis-py reports when its objects are collected, which may be when the tests' streams are closed.
logging.getLogger("redis.auth.token_manager").setLevel(logging.WARNING)

_RIGHTS = {"enabled": True, "commands": ["+@all"], "keys": ["*"], "channels": ["*"]}
# A lagging event loop must not find a token expired that it had no time to renew.
_STEPS = 20


class Authority(IdentityProviderInterface):
    """Issues tokens, each for a user of its own; when one expires, servers close the connections that still use it.

    It has the form of redis-entraid's identity providers.

    Args:
        inspectors: redis-py's blocking clients of the servers that accept the tokens.
        lifetime: How long they do, in seconds of which the event loop has its share.
        forgets: Whether the servers forget an expired token.

    Attributes:
        issued: The users of all tokens.
        error: What requests raise, if anything.
        failed: How many have raised it.
    """

    def __init__(self, *inspectors, lifetime=3600.0, forgets=True):
        self._inspectors = inspectors
        self._lifetime = lifetime
        self._forgets = forgets
        self._loop = asyncio.get_running_loop() if forgets else None
        self._numbers = itertools.count(1)
        self._expiring = []
        # A thread may request a token while the authority closes; with its inspector, it would connect again.
        self._lock = threading.Lock()
        self.issued = []
        self.error, self.failed = None, 0

    def request_token(self, force_refresh=False):
        """Issue a token; may be called in any thread."""
        with self._lock:
            if self.error is not None:
                self.failed += 1
                raise self.error
            number = next(self._numbers)
            user, password = f"app-{number}", f"token-{number}"
            for inspector in self._inspectors:
                inspector.acl_setuser(user, passwords=[f"+{password}"], **_RIGHTS)
            self.issued.append(user)
        if self._forgets:
            self._loop.call_soon_threadsafe(self._begin_expiring, user)
        now = time.time() * 1000
        return SimpleToken(password, now + self._lifetime * 1000, now, {"oid": user})

    def _begin_expiring(self, user):
        self._expiring.append(asyncio.create_task(self._expire(user)))

    async def _expire(self, user):
        for _ in range(_STEPS):
            await asyncio.sleep(self._lifetime / _STEPS)
        self.revoke(user)

    def revoke(self, *users):
        """Have the servers forget users, and close their connections."""
        for inspector in self._inspectors if users else ():
            inspector.acl_deluser(*users)

    def refuse(self):
        """Have the servers forget all tokens, and refuse those that are issued from now on."""
        self.revoke(*self.issued)
        self._inspectors = ()

    def close(self):
        """Issue no more tokens, and delete all users."""
        for task in self._expiring:
            task.cancel()
        with self._lock:
            self.error = RequestTokenErr("the authority is closed")
            self.revoke(*self.issued)


def connections_of(inspector):
    """Return the user of each connection of a token's user, by the connection's id."""
    try:
        clients = inspector.client_list()
    except redis.exceptions.ConnectionError:
        return {}
    return {each["id"]: each["user"] for each in clients if each["user"].startswith("app-")}
