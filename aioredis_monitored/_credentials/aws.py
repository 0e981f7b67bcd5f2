"""Tokens of AWS IAM for ElastiCache and MemoryDB: a request to connect that is signed, and not sent."""

import time
from typing import Any, Final
from urllib.parse import urlencode

from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.session import Session
from redis.auth.token import SimpleToken
from redis.exceptions import AuthenticationError

from aioredis_monitored._credentials.tokens import TokenProvider

# The longest that the servers accept. What AWS issues to sign with is valid for at least ten minutes more when botocore
# hands it out: for longer than until the token is renewed.
_TOKEN_SECONDS: Final = 900
# How long the servers keep a connection after they have accepted a token.
_SESSION_SECONDS: Final = 12 * 3600.0


class AwsTokens:
    """Signs tokens with the AWS credentials that botocore finds: of a role, a profile, the environment, a container.

    Args:
        user: The ID of the IAM user of the cache, which is also its name.
        cache: The name of the cache: of a replication group, a serverless cache or a MemoryDB cluster.
        region: Where it is.
        service: What it is: ``elasticache``, ``elasticache-serverless`` or ``memorydb``.
        session: Where the AWS credentials are.
    """

    def __init__(self, user: str, cache: str, region: str, service: str, session: Session) -> None:
        self._user = user
        self._region = region
        self._service = service.removesuffix("-serverless")
        query = {"Action": "connect", "User": user}
        if service == "elasticache-serverless":
            query["ResourceType"] = "ServerlessCache"
        self._url = f"https://{cache}/?{urlencode(query)}"
        self._session = session

    def request_token(self) -> SimpleToken:
        """Sign a token; it may take the network, to renew the AWS credentials.

        Raises:
            redis.exceptions.AuthenticationError: There are no AWS credentials.
        """
        credentials: Any = self._session.get_credentials()
        if credentials is None:
            raise AuthenticationError("the credentials 'aws' gave no token: botocore finds no AWS credentials")
        signed_at = time.time() * 1000
        request: Any = AWSRequest("GET", self._url)
        signer = SigV4QueryAuth(credentials.get_frozen_credentials(), self._service, self._region, _TOKEN_SECONDS)
        signer.add_auth(request)
        token = request.url.removeprefix("https://")
        return SimpleToken(token, signed_at + _TOKEN_SECONDS * 1000, signed_at, {"oid": self._user})


def aws_provider(user: str, cache: str, region: str, service: str) -> TokenProvider:
    """Return a provider of tokens, for arguments see ``AwsTokens``."""
    return TokenProvider("aws", AwsTokens(user, cache, region, service, Session()).request_token, _SESSION_SECONDS)
