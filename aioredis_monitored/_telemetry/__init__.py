"""Spans and metrics of the calls: names, their meaning, the instruments, and the recorder that alone uses them."""
