"""The package's private parts that tests read or replace, each in one place."""


def recorder_of(client):
    """Return the recorder of a client's calls."""
    return client._executor.recorder


def record_with(client, recorder):
    """Replace the recorder of a client's calls."""
    client._executor.recorder = recorder
