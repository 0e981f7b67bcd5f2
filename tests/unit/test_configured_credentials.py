"""Credentials from configuration: what is refused, under which key, and what a factory is called with."""

import sys
import textwrap

import pytest
from redis.credentials import UsernamePasswordCredentialProvider
from support.internals import streaming_provider_of

import aioredis_monitored.config.credentials
from aioredis_monitored import (
    ConfigurationError,
    MonitoredClusterPool,
    MonitoredConnectionPool,
    MonitoredSentinelPool,
    RedisConfig,
    config_from_env,
    pool_from_config,
)
from aioredis_monitored._credentials.tokens import TokenProvider

SECRET = "hunter2"
AWS = {"credentials": "aws", "username": "app", "aws_region": "eu-west-1", "aws_cache": "orders"}


def problems(url="rediss://h", **keys):
    """Return the problems of a configuration, a line for each."""
    with pytest.raises(ConfigurationError) as caught:
        pool_from_config({"redis.url": url, **{f"redis.{key}": value for key, value in keys.items()}})
    assert SECRET not in str(caught.value)
    return str(caught.value).splitlines()


def provider_of(pool):
    return pool.connection_kwargs["credential_provider"]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write modules of the application."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        monkeypatch.delitem(sys.modules, name, raising=False)

    yield write
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


# --- Factories ---

FACTORY = """
    from redis.credentials import UsernamePasswordCredentialProvider

    called = []

    def factory(config):
        called.append(config)
        return UsernamePasswordCredentialProvider(config.username, "secret")

    class Factories:
        factory = staticmethod(factory)
"""


@pytest.mark.parametrize("name", ["shop_credentials:factory", " shop_credentials:Factories.factory "])
@pytest.mark.parametrize(
    ("url", "kind", "topology"),
    [
        ("redis://h:7000", MonitoredConnectionPool, "standalone"),
        ("unix:///run/redis.sock", MonitoredConnectionPool, "standalone"),
        ("redis+cluster://h:7000", MonitoredClusterPool, "cluster"),
        ("redis+sentinel://h:7000/main", MonitoredSentinelPool, "sentinel"),
    ],
)
def test_factory_is_called_once_with_the_configuration_of_the_pool(module, name, url, kind, topology):
    module("shop_credentials", FACTORY)
    config = {"redis.url": url, "redis.credentials": name, "redis.username": "app", "redis.db": "0"}
    pool = pool_from_config(config)

    assert kind is type(pool)
    (given,) = sys.modules["shop_credentials"].called
    assert RedisConfig.from_mapping(config, "redis.") == given
    assert (topology, "app") == (given.topology, given.username)
    assert ("app", "secret") == provider_of(pool).get_credentials()
    assert {"username", "password"} & pool.connection_kwargs.keys() == set()


def test_factory_is_configured_by_variable_for_each_pool(module):
    module("shop_credentials", FACTORY)
    environ = {"REDIS_CACHE_URL": "redis://h", "REDIS_CACHE_CREDENTIALS": "shop_credentials:factory"}
    pool = pool_from_config(config_from_env(environ), "redis.cache.")

    assert isinstance(provider_of(pool), UsernamePasswordCredentialProvider)


def test_arguments_of_a_configuration_have_the_provider(module):
    module("shop_credentials", FACTORY)
    config = RedisConfig(credentials="shop_credentials:factory", username="app")

    assert ("app", "secret") == provider_of(MonitoredConnectionPool(**config.pool_arguments())).get_credentials()


@pytest.mark.parametrize(
    "arguments", [{"password": "p"}, {"credential_provider": UsernamePasswordCredentialProvider("a", "b")}]
)
def test_argument_replaces_configured_credentials_which_are_not_made(module, arguments):
    module("shop_credentials", FACTORY)
    pool = pool_from_config(
        {"redis.url": "redis://h", "redis.credentials": "shop_credentials:factory", "redis.username": "app"},
        **arguments,
    )

    assert "shop_credentials" not in sys.modules
    assert arguments.items() <= pool.connection_kwargs.items()
    assert ("app" if "password" in arguments else None) == pool.connection_kwargs.get("username")


def test_user_that_is_an_argument_is_the_providers(module):
    module("shop_credentials", FACTORY)
    config = {"redis.url": "redis://app@h", "redis.credentials": "shop_credentials:factory"}

    assert ("other", "secret") == provider_of(pool_from_config(config, username="other")).get_credentials()


def test_user_that_is_an_argument_is_refused_where_the_token_names_it():
    with pytest.raises(ConfigurationError, match=r"^redis\.username: cannot be given together with credentials=entra"):
        pool_from_config({"redis.url": "rediss://h", "redis.credentials": "entra"}, username="app")


@pytest.mark.parametrize("value", ["AWS", "gcp", "module", "module:", ":factory", "a-b:c", "a:b:c", "a.:b", 5])
def test_credentials_must_be_a_name_or_a_factory(value):
    assert ["redis.credentials: must be aws, entra, or a factory as module:name"] == problems(credentials=value)


@pytest.mark.parametrize(
    ("text", "name", "problem"),
    [
        ("", "shop_nowhere:f", "there is no module shop_nowhere"),
        ("", "shop_nowhere.inner:f", "there is no module shop_nowhere"),
        ("", "shop_credentials.inner:f", "there is no module shop_credentials.inner"),
        (
            "import shop_nowhere",
            "shop_credentials:f",
            "the module shop_credentials cannot be imported: ModuleNotFoundError: No module named 'shop_nowhere'",
        ),
        (
            f"raise ValueError('{SECRET}')",
            "shop_credentials:f",
            "the module shop_credentials cannot be imported: Value",
        ),
        ("1 +", "shop_credentials:f", "the module shop_credentials cannot be imported: SyntaxError"),
        ("def factory(config): ...", "shop_credentials:factori", "has no factori; did you mean factory?"),
        ("", "shop_credentials:factory", "the module shop_credentials has no factory"),
        ("factory = 5", "shop_credentials:factory", "shop_credentials:factory must be a function, got int"),
        (
            f"def factory(config): return ('app', '{SECRET}')",
            "shop_credentials:factory",
            "must return a redis.credentials.CredentialProvider, it returned tuple",
        ),
        (
            "async def factory(config): ...",
            "shop_credentials:factory",
            "must return a redis.credentials.CredentialProvider, it returned coroutine",
        ),
    ],
)
def test_factory_that_cannot_be_used_is_one_error(module, text, name, problem):
    module("shop_credentials", text)
    (found,) = problems(credentials=name)

    assert found.startswith("redis.credentials: ")
    assert problem in found


def test_error_in_a_module_stays_the_cause(module):
    module("shop_credentials", "import shop_nowhere")
    with pytest.raises(ConfigurationError) as caught:
        pool_from_config({"redis.url": "redis://h", "redis.credentials": "shop_credentials:factory"})

    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert "shop_nowhere" == caught.value.__cause__.name


def test_error_of_a_factory_is_the_cause_and_not_quoted(module):
    module("shop_credentials", f"def factory(config): raise LookupError('{SECRET}')")
    with pytest.raises(ConfigurationError) as caught:
        pool_from_config({"redis.url": "redis://h", "redis.credentials": "shop_credentials:factory"})

    assert str(caught.value) == "redis.credentials: shop_credentials:factory raised LookupError"
    assert isinstance(caught.value.__cause__, LookupError)


# --- Names ---


@pytest.mark.parametrize("scheme", ["rediss", "valkeys", "rediss+cluster", "rediss+sentinel"])
def test_aws_makes_a_provider_of_tokens(scheme):
    place = "/main" if "sentinel" in scheme else ""
    pool = pool_from_config({"redis.url": f"{scheme}://app@h{place}", **_prefixed(AWS | {"username": None})})

    assert isinstance(streaming_provider_of(pool), TokenProvider)


def test_entra_makes_a_provider_of_tokens():
    pool = pool_from_config({"redis.url": "rediss://h", "redis.credentials": "entra"})

    assert isinstance(streaming_provider_of(pool), TokenProvider)


def _prefixed(keys):
    return {f"redis.{key}": value for key, value in keys.items()}


def test_all_that_aws_needs_is_reported_at_once():
    assert [
        "redis.credentials: aws needs rediss://",
        "redis.username: no value specified, which credentials=aws needs",
        "redis.aws_region: no value specified, which credentials=aws needs",
        "redis.aws_cache: no value specified, which credentials=aws needs",
    ] == problems("redis://h", credentials="aws")


def test_configuration_without_what_aws_needs_makes_no_arguments():
    with pytest.raises(ConfigurationError) as caught:
        RedisConfig(credentials="aws", username="app", aws_region="eu-west-1").pool_arguments(prefix="redis.")

    assert "redis.aws_cache: no value specified, which credentials=aws needs" == str(caught.value)


@pytest.mark.parametrize(
    ("url", "needed"),
    [
        ("redis://h", "rediss://"),
        ("valkey://h", "rediss://"),
        ("unix:///s", "rediss://"),
        ("redis+cluster://h", "rediss+cluster://"),
        ("redis+sentinel://h/main", "rediss+sentinel://"),
    ],
)
@pytest.mark.parametrize("name", ["aws", "entra"])
def test_tokens_of_clouds_need_tls(url, needed, name):
    keys = AWS if name == "aws" else {"credentials": "entra"}
    assert [f"redis.credentials: {name} needs {needed}"] == problems(url, **keys)


@pytest.mark.parametrize(
    ("key", "value", "accepts"),
    [
        ("aws_region", "Ireland", "a region of AWS such as eu-west-1"),
        ("aws_region", "eu-west-1 ;", "a region of AWS such as eu-west-1"),
        ("aws_cache", "Orders", "the name of a cache, in lower case"),
        ("aws_cache", "orders.abc.cache.amazonaws.com", "the name of a cache, in lower case"),
        ("aws_cache", "orders--a", "the name of a cache, in lower case"),
        ("aws_service", "redis", "elasticache, elasticache-serverless or memorydb"),
    ],
)
def test_key_of_aws_that_cannot_be_is_refused(key, value, accepts):
    assert [f"redis.{key}: must be {accepts}"] == problems(**AWS | {key: value})


@pytest.mark.parametrize("credentials", [{}, {"credentials": "entra"}])
def test_keys_of_aws_need_credentials_of_aws(credentials):
    assert [
        "redis.aws_cache: needs credentials=aws",
        "redis.aws_region: needs credentials=aws",
        "redis.aws_service: needs credentials=aws",
    ] == problems(aws_region="eu-west-1", aws_cache="c", aws_service="memorydb", **credentials)


def test_unreadable_credentials_are_the_only_problem_of_keys_of_aws():
    assert ["redis.credentials: must be aws, entra, or a factory as module:name"] == problems(
        **AWS | {"credentials": "Aws"}
    )


@pytest.mark.parametrize("name", ["aws", "entra", "module:factory"])
@pytest.mark.parametrize(
    ("url", "keys", "source"),
    [
        ("rediss://h", {"password": SECRET}, "the password in redis.password"),
        (f"rediss://:{SECRET}@h", {}, "the password in redis.url"),
        ("rediss://h", {"password_file": True}, "the password_file in redis.password_file"),
    ],
)
def test_credentials_exclude_passwords(tmp_path, name, url, keys, source):
    (tmp_path / "password").write_text(SECRET)
    keys = {key: tmp_path / "password" if key == "password_file" else value for key, value in keys.items()}
    keys |= AWS if name == "aws" else {"credentials": name}

    assert [f"redis.credentials: cannot be given together with {source}"] == problems(url, **keys)


@pytest.mark.parametrize("url", ["rediss://app@h", "rediss://h"])
def test_entra_excludes_a_user(url):
    keys = {} if "@" in url else {"username": "app"}
    source = "url: username" if "@" in url else "username:"
    assert [f"redis.{source} cannot be given together with credentials=entra: the token names the user"] == problems(
        url, credentials="entra", **keys
    )


@pytest.mark.parametrize("name", ["credentials", "aws_region", "aws_cache", "aws_service"])
def test_url_chooses_no_credentials(name):
    (found,) = problems(f"rediss://h?{name}={SECRET}")

    assert found.startswith("redis.url: unknown option")


@pytest.mark.parametrize(("name", "package"), [("aws", "botocore"), ("entra", "redis-entraid")])
def test_missing_extra_is_one_error_with_the_command_to_install_it(monkeypatch, name, package):
    monkeypatch.setattr(aioredis_monitored.config.credentials, "find_spec", lambda _: None)
    expected = f'{name} needs {package}, which is not installed: pip install "aioredis_monitored[{name}]"'
    keys = AWS if name == "aws" else {"credentials": name}

    assert [f"redis.credentials: {expected}"] == problems(**keys)
    with pytest.raises(ConfigurationError) as caught:
        RedisConfig(**keys).pool_arguments(prefix="redis.")
    assert f"redis.credentials: {expected}" == str(caught.value)


def test_environment_that_azure_identity_refuses_is_an_error_with_its_cause(monkeypatch):
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", SECRET)
    with pytest.raises(ConfigurationError, match=r"^redis\.credentials: entra cannot be used: ValueError$") as caught:
        pool_from_config({"redis.url": "rediss://h", "redis.credentials": "entra"})

    assert "AZURE_TOKEN_CREDENTIALS" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("variable", "key"),
    [
        ("REDIS_CREDENTIALS", "redis.credentials"),
        ("REDIS_AWS_REGION", "redis.aws_region"),
        ("REDIS_CACHE_AWS_CACHE", "redis.cache.aws_cache"),
        ("REDIS_AWS_SERVICE", "redis.aws_service"),
        ("REDIS_CACHE_CREDENTIALS", "redis.cache.credentials"),
    ],
)
def test_variables_give_the_keys(variable, key):
    assert {key: "value"} == config_from_env({variable: "value"})
