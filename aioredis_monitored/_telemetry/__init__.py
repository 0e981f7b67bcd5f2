"""Spans and metrics of calls: their names and meaning, the instruments, and the recorder, the only user of them."""
