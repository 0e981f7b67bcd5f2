"""Every private part of redis-py, and of the event loop under it, that this package touches."""
