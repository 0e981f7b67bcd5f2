"""The private parts of redis-py, and of the event loop's transports, that this package uses."""
