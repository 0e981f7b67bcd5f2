"""Name servers that answer what a test wants."""

import socket
from collections import Counter

ENDING = ".example"


def replace_name_servers(monkeypatch, answer):
    """Have ``answer`` return the addresses of all names that end with ``.example``; return how often it was asked."""
    resolve, asked = socket.getaddrinfo, Counter()

    def resolve_examples(host, *arguments, **options):
        addresses = [host]
        if str(host).endswith(ENDING):
            asked[host] += 1
            addresses = answer(host)
        return [each for address in addresses for each in resolve(address, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve_examples)
    return asked
