"""Draws queues in a terminal, in place; it needs an extra."""

from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aioredis_monitored.cli.queue_report import HEADINGS, Look, queue_cells


class QueueScreen:
    """Context manager in which each look at the queues is drawn over the one before it."""

    def __init__(self) -> None:
        self._live = Live(console=Console(highlight=False), auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, look: Look) -> None:
        """Draw what was seen; after a problem, that is what was seen before it."""
        table = Table(box=None, pad_edge=False, style="dim" if look.problem else "")
        for heading in HEADINGS:
            table.add_column(heading, justify="left" if heading in {"QUEUE", "OLDEST"} else "right")
        for name, stats in look.queues.items():
            # Not as text that may have markup.
            table.add_row(*map(Text, queue_cells(name, stats)))
        footer = Text(f"seen at {look.seen_at.astimezone():%H:%M:%S}; Ctrl-C ends", style="dim")
        problem = Text(look.problem, style="red")
        self._live.update(Group(table, footer, *([problem] if look.problem else [])), refresh=True)
