"""``credentials=aws`` and ``credentials=entra``, from environment variables to a real server's ACL."""

import base64
import json
import ssl
import time
from types import SimpleNamespace

import pytest
import trustme
from support.sharing import UNRECORDED
from support.tokens import connections_of

from aioredis_monitored import MonitoredRedisConnection, config_from_env, pool_from_config
from aioredis_monitored._credentials import aws, entra
from aioredis_monitored.testing import FaultProxy

USER = "app-of-a-cloud"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
async def environ(server, authority, tmp_path):
    """Yield the variables of a server that is reached with TLS."""
    identity = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(identity)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    async with FaultProxy(server.host, server.port, tls=identity) as proxy:
        yield {"REDIS_URL": proxy.url, "REDIS_SSL_CA_CERTS": str(tmp_path / "authority.pem")}


@pytest.fixture
def accept(inspector):
    """Have the server accept a token, beside earlier ones."""

    def add_password(token):
        rights = {"commands": ["+@all"], "keys": ["*"]}
        inspector.acl_setuser(USER, enabled=True, passwords=[f"+{token}"], **rights)

    yield add_password
    inspector.acl_deluser(USER)


def json_web_token(**claims):
    """Return a token without a signature, which clients do not check."""
    parts = [{"alg": "HS256", "typ": "JWT"}, claims]
    return (
        ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + ".c2ln"
    )


def auth_calls(inspector):
    return inspector.info("commandstats").get("cmdstat_auth", {"calls": 0})["calls"]


async def test_entra_connects_with_the_token_of_the_identity_and_renews_it(
    environ, accept, inspector, monkeypatch, until
):
    requested = []

    class Identity:
        """Azure's, which is not here: the only double."""

        def get_token(self, *scopes, **options):
            requested.append(scopes)
            token = json_web_token(oid=USER, exp=int(time.time()) + 2, number=len(requested))
            accept(token)
            return SimpleNamespace(token=token)

    monkeypatch.setattr(entra, "DefaultAzureCredential", Identity)
    config = config_from_env(environ | {"REDIS_CREDENTIALS": "entra"})
    async with pool_from_config(config, **UNRECORDED) as first, pool_from_config(config, **UNRECORDED) as second:
        await first.ping()
        await second.ping()
        before = connections_of(inspector)
        assert {USER} == set(before.values())
        assert 2 == len(before)
        sent = auth_calls(inspector)
        await until(lambda: auth_calls(inspector) >= sent + 4)
        redis = MonitoredRedisConnection(connection_pool=first)
        assert USER == await redis.acl_whoami()
        assert before.keys() <= connections_of(inspector).keys()

    assert {("https://redis.azure.com/.default",)} == set(requested)


@pytest.mark.parametrize("service", ["elasticache", "elasticache-serverless", "memorydb"])
async def test_aws_connects_with_the_signed_token(environ, accept, monkeypatch, service):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    environ |= {
        "REDIS_CREDENTIALS": "aws",
        "REDIS_USERNAME": USER,
        "REDIS_AWS_REGION": "eu-west-1",
        "REDIS_AWS_CACHE": "orders",
        "REDIS_AWS_SERVICE": service,
    }
    signed = []

    class Watched(aws.AwsTokens):
        def request_token(self):
            token = super().request_token()
            signed.append(token.get_value())
            accept(token.get_value())
            return token

    monkeypatch.setattr(aws, "AwsTokens", Watched)
    async with pool_from_config(config_from_env(environ), **UNRECORDED) as pool:
        redis = MonitoredRedisConnection(connection_pool=pool)
        await pool.ping()
        assert USER == await redis.acl_whoami()

    (token,) = signed
    assert token.startswith(f"orders/?Action=connect&User={USER}&")
    assert ("ResourceType=ServerlessCache" in token) == (service == "elasticache-serverless")
    assert f"%2Feu-west-1%2F{service.removesuffix('-serverless')}%2Faws4_request" in token
