"""The private parts of the package that tests look at or replace, each in one place."""


def recorder_of(client):
    """Where a client's calls are recorded."""
    return client._executor.recorder


def record_with(client, recorder):
    """Have a client's calls recorded elsewhere."""
    client._executor.recorder = recorder
