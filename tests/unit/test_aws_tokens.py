"""Tokens of AWS: their exact text under a frozen clock, by the published algorithm written out here."""

import datetime as dt
import hashlib
import hmac
import json
from urllib.parse import parse_qs, quote, urlsplit

import botocore.auth
import pytest
from botocore.session import Session
from redis.exceptions import AuthenticationError

from aioredis_monitored._credentials import aws
from aioredis_monitored._credentials.aws import AwsTokens, aws_provider

NOW = dt.datetime(2026, 12, 1, 13, 45, 7)  # noqa: DTZ001 - as botocore has it, UTC without saying so
KEY, SECRET, SESSION = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "FwoGZXIvYXdz/+=="


@pytest.fixture(autouse=True)
def frozen(monkeypatch):
    """Stop botocore's clock, and have it find no credentials of this machine."""
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: NOW)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")


def hmac_of(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256)


def written_out(user, cache, region, service, *, resource_type=None, session=None):
    """Return the token: AWS Signature Version 4 in the query of GET https://{cache}/, without the scheme."""
    date, time = "20261201", "20261201T134507Z"
    scope = f"{date}/{region}/{service}/aws4_request"
    parameters = {"Action": "connect", "User": user}
    if resource_type is not None:
        parameters["ResourceType"] = resource_type
    parameters |= {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{KEY}/{scope}",
        "X-Amz-Date": time,
        "X-Amz-Expires": "900",
        "X-Amz-SignedHeaders": "host",
    }
    if session is not None:
        parameters["X-Amz-Security-Token"] = session
    encoded = [f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in parameters.items()]
    no_body = hashlib.sha256(b"").hexdigest()
    request = "\n".join(["GET", "/", "&".join(sorted(encoded)), f"host:{cache}", "", "host", no_body])
    to_sign = "\n".join(["AWS4-HMAC-SHA256", time, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{SECRET}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac_of(key, part).digest()
    return f"{cache}/?{'&'.join(encoded)}&X-Amz-Signature={hmac_of(key, to_sign).hexdigest()}"


def session_of(token=None):
    session = Session()
    session.set_credentials(KEY, SECRET, token)
    return session


@pytest.mark.parametrize("session_token", [None, SESSION])
@pytest.mark.parametrize("user", ["iam-user-01", "user name+é/~"])
@pytest.mark.parametrize(
    ("service", "signed_for", "resource_type"),
    [
        ("elasticache", "elasticache", None),
        ("elasticache-serverless", "elasticache", "ServerlessCache"),
        ("memorydb", "memorydb", None),
    ],
)
def test_token_is_the_signed_request_without_its_scheme(service, signed_for, resource_type, user, session_token):
    tokens = AwsTokens(user, "my-cache", "eu-west-1", service, session_of(session_token))
    expected = written_out(
        user, "my-cache", "eu-west-1", signed_for, resource_type=resource_type, session=session_token
    )
    token = tokens.request_token()

    assert expected == token.get_value()
    assert user == token.try_get("oid")
    assert 900_000 == token.get_expires_at_ms() - token.get_received_at_ms()


def test_written_out_algorithm_agrees_with_a_published_example():
    """AWS publishes the key that is derived for 20150830, us-east-1 and iam."""
    key = b"AWS4wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
    for part in ("20150830", "us-east-1", "iam", "aws4_request"):
        key = hmac_of(key, part).digest()

    assert "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9" == key.hex()


def test_token_shows_no_secret():
    token = AwsTokens("u", "c", "eu-west-1", "elasticache", session_of()).request_token().get_value()

    assert SECRET not in token
    assert ["900"] == parse_qs(urlsplit(f"https://{token}").query)["X-Amz-Expires"]


def test_each_token_is_signed_with_the_present_credentials():
    session = session_of()
    tokens = AwsTokens("u", "c", "eu-west-1", "elasticache", session)
    before = tokens.request_token().get_value()
    session.set_credentials("AKIDNEXT", SECRET)

    assert "AKIDEXAMPLE" in before
    assert "AKIDNEXT" in tokens.request_token().get_value()


def test_aws_credentials_that_expire_are_asked_for_again(monkeypatch, tmp_path):
    """A process gives them, as for a role; botocore takes them for expired ten minutes before they are."""

    def give(key):
        expiration = (dt.datetime.now(dt.UTC) + dt.timedelta(minutes=9)).isoformat()
        given = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": SECRET, "SessionToken": SESSION}
        (tmp_path / "given").write_text(json.dumps(given | {"Expiration": expiration}))

    (tmp_path / "config").write_text(f"[default]\ncredential_process = cat {tmp_path / 'given'}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    tokens = AwsTokens("u", "c", "eu-west-1", "memorydb", Session())
    for key in ("AKIDFIRST", "AKIDSECOND"):
        give(key)
        assert key in tokens.request_token().get_value()


def test_connections_are_renewed_in_half_of_the_twelve_hours_that_aws_keeps_them(monkeypatch):
    made = []
    monkeypatch.setattr(aws, "TokenProvider", lambda *arguments: made.append(arguments))
    aws_provider("u", "c", "eu-west-1", "elasticache")

    # Half of it: test_connections_are_authenticated_again_in_half_the_time_that_the_server_keeps_them
    [(_, _, session_seconds)] = made
    assert 12 * 60 * 60 == session_seconds


async def test_missing_aws_credentials_are_an_error_of_their_own():
    provider = aws_provider("u", "c", "eu-west-1", "elasticache")
    with pytest.raises(
        AuthenticationError, match=r"^the credentials 'aws' gave no token: botocore finds no AWS credentials$"
    ):
        await provider.get_credentials_async()


async def test_aws_credentials_are_read_in_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SESSION)
    expected = written_out("u", "c", "eu-west-1", "memorydb", session=SESSION)

    assert ("u", expected) == await aws_provider("u", "c", "eu-west-1", "memorydb").get_credentials_async()
