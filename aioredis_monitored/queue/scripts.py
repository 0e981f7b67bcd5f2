"""The Lua scripts of a queue: with each of them, a message is in exactly one list at any time (see ``lua/``)."""

from collections.abc import Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final

HEAD: Final = "LEFT"
TAIL: Final = "RIGHT"


class LuaScript:
    """A script of the ``lua`` directory, without its comments.

    Args:
        name: The file's name, without ``.lua``.

    Attributes:
        text: What the server runs.
    """

    def __init__(self, name: str) -> None:
        lines = files(__package__).joinpath("lua", f"{name}.lua").read_text("utf-8").splitlines()
        self.text = "\n".join(line for line in lines if line and not line.startswith("--"))
        self._sha = sha1(self.text.encode("ascii"), usedforsecurity=False).hexdigest()

    def evalsha(self, keys: Sequence[str], arguments: Sequence[Any] = ()) -> tuple[Any, ...]:
        """Return the command that runs the script on a server that knows it."""
        return ("EVALSHA", self._sha, len(keys), *keys, *arguments)

    def eval(self, keys: Sequence[str], arguments: Sequence[Any] = ()) -> tuple[Any, ...]:
        """Return the command that runs the script on any server, which knows it from then on."""
        return ("EVAL", self.text, len(keys), *keys, *arguments)


REGISTER: Final = LuaScript("register")
TAKE: Final = LuaScript("take")
ACK: Final = LuaScript("ack")
NACK: Final = LuaScript("nack")
DELIVERY_COUNTS: Final = LuaScript("delivery_counts")
SWEEP: Final = LuaScript("sweep")
FORGET: Final = LuaScript("forget")
REQUEUE_DEAD: Final = LuaScript("requeue_dead")
DROP_DEAD: Final = LuaScript("drop_dead")
PUT: Final = LuaScript("put")
PEEK: Final = LuaScript("peek")
RESTORE_POP: Final = LuaScript("restore_pop")
