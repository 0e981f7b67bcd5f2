"""What a streaming provider pushes reaches those that can use it, whatever has happened to the others."""

import asyncio

from redis.auth.token import SimpleToken

from aioredis_monitored._credentials.renewals import Renewals, RunningLoop

TOKEN = SimpleToken("token", -1, 0, {"oid": "app"})


class User:
    """Has connections."""

    def __init__(self):
        self.tokens = []

    async def re_auth_callback(self, token):
        self.tokens.append(token)


async def test_token_reaches_its_users_beside_one_whose_event_loop_is_closed():
    renewals, gone, present = Renewals(), User(), User()
    closed = asyncio.new_event_loop()
    closed.close()
    renewals.add(gone, RunningLoop(closed))
    renewals.add(present, RunningLoop(asyncio.get_running_loop()))

    await renewals.push(TOKEN)
    assert ([], [TOKEN]) == (gone.tokens, present.tokens)


async def test_users_that_are_gone_get_no_token():
    renewals, user = Renewals(), User()
    tokens = user.tokens
    renewals.add(user, RunningLoop(asyncio.get_running_loop()))
    del user

    await renewals.push(TOKEN)
    assert [] == tokens
