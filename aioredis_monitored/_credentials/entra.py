"""Tokens of Microsoft Entra ID for Azure's Redis services, which redis-entraid requests."""

from typing import Final

from azure.identity import DefaultAzureCredential
from redis_entraid.identity_provider import DefaultAzureCredentialProvider

from aioredis_monitored._credentials.tokens import TokenProvider

_SCOPE: Final = "https://redis.azure.com/.default"


def entra_provider() -> TokenProvider:
    """Return a provider of tokens for the identity that azure-identity finds: of a workload, a machine, a developer.

    It has redis-entraid's way of requesting tokens, and not its way of renewing them, which requests them in the event
    loop, and ends with the first renewal that fails.
    """
    return TokenProvider("entra", DefaultAzureCredentialProvider(DefaultAzureCredential(), (_SCOPE,)).request_token)
