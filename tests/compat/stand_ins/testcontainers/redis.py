"""Stand-in for testcontainers in arq's tests, which requires Docker: returns the server that runs already."""

import os


class RedisContainer:
    """A server."""

    port = 6379

    def __init__(self, image):
        self.image = image

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        pass

    def get_container_host_ip(self):
        return os.environ["COMPAT_HOST"]

    def get_exposed_port(self, port):
        return int(os.environ["COMPAT_PORT"])
