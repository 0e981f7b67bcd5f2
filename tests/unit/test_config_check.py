"""``config check``: every problem of a configuration, from the environment or from a file, without connecting."""

import json

import pytest

from aioredis_monitored.cli import main

SECRET = "hunter2-Zx9"


@pytest.fixture
def check(tmp_path, capsys):
    """Run the command on the text of a file; return the exit code and the findings."""

    def run(text, *arguments):
        file = tmp_path / "variables"
        file.write_text(text, "utf-8")
        code = main(["config", "check", "--json", "--env-file", str(file), *arguments])
        output, errors = capsys.readouterr()
        report = json.loads(output)
        assert (code, "") == (report["exit_code"], errors)
        assert SECRET not in output
        return code, [(each["verdict"], each["text"].replace(str(tmp_path), "")) for each in report["findings"]]

    return run


def test_configuration_that_can_be_used_is_ok(check):
    text = f"""
        # of the shop
        export REDIS_URL="rediss://:{SECRET}@cache.example/2"
        REDIS_SOCKET_TIMEOUT='500 ms'
        HOME=/root
    """
    assert (0, [("ok", "redis.* can be used: rediss://cache.example:6379")]) == check(text)


def test_all_problems_are_named_with_their_variables(check):
    text = f"REDIS_URL=redis://:{SECRET}@cache.example:x\nREDIS_DB={SECRET}\nREDIS_PASSWORD_FILE=/no/such/file\n"
    code, findings = check(text)

    assert 2 == code
    assert {"fault"} == {verdict for verdict, _ in findings}
    assert "redis.url (REDIS_URL): the port must be a number from 1 to 65535" in findings[0][1]
    assert {"REDIS_URL", "REDIS_DB", "REDIS_PASSWORD_FILE"} == {
        text.split("(")[1].split(")")[0] for _, text in findings
    }


def test_missing_url_is_named(check):
    code, [(verdict, text)] = check("REDIS_DB=2\n")

    assert (2, "fault") == (code, verdict)
    assert text.startswith("redis.url (REDIS_URL): no value specified")


def test_all_pools_are_checked_unless_one_is_chosen(check):
    text = "REDIS_SESSIONS_URL=redis://a\nREDIS_CARTS_URL=redis://b\nREDIS_CARTS_DB=x\n"

    assert 2 == check(text)[0]
    assert (0, [("ok", "redis.sessions.* can be used: redis://a:6379")]) == check(text, "--prefix", "redis.sessions.")
    assert ("fault", "redis.carts.db (REDIS_CARTS_DB): must be a whole number, 0 or more") == check(text)[1][-1]


def test_mistyped_names_are_warnings(check):
    text = "REDIS_URL=redis://a\nREDIS_MAX_CONECTIONS=5\nREDIS_SSL=true\nREDIS_SESSIONS_DB=3\n"
    code, findings = check(text)

    assert 0 == code
    warnings = [text for verdict, text in findings if verdict == "warning"]
    assert "REDIS_MAX_CONECTIONS: did you mean REDIS_MAX_CONNECTIONS?" in warnings
    assert any(each.startswith("REDIS_SSL has no effect: rediss://") for each in warnings)
    assert "REDIS_SESSIONS_DB has no effect without REDIS_SESSIONS_URL" in warnings


def test_options_of_telemetry_that_do_not_go_together_are_refused(check):
    text = "REDIS_URL=redis://a\nREDIS_TELEMETRY_HOT_KEYS=0.5\nREDIS_TELEMETRY_SHOW_KEYS=false\n"

    assert 2 == check(text)[0]


def test_lines_that_are_no_assignments_are_named_by_their_numbers(check):
    assert (2, [("fault", "/variables:2: must be NAME=value"), ("fault", "/variables:3: must be NAME=value")]) == check(
        f"REDIS_URL=redis://a\n{SECRET}\n: {SECRET}\n"
    )


def test_file_that_cannot_be_read_is_named(tmp_path, capsys):
    assert 2 == main(["config", "check", "--env-file", str(tmp_path / "none")])
    assert "none: cannot be read: No such file or directory" in capsys.readouterr().out

    (tmp_path / "latin").write_bytes(b"REDIS_URL=\xff")
    assert 2 == main(["doctor", "--env-file", str(tmp_path / "latin")])
    assert "latin: cannot be read: not UTF-8" in capsys.readouterr().out


@pytest.mark.parametrize("prefix", ["redis", "shop.", "", SECRET])
def test_prefix_must_be_that_of_a_pool(prefix, capsys):
    with pytest.raises(SystemExit) as exited:
        main(["config", "check", "--prefix", prefix])

    assert 2 == exited.value.code
    errors = capsys.readouterr().err
    assert "--prefix: must be 'redis.'" in errors
    assert SECRET not in errors


def test_environment_is_checked_without_a_file(monkeypatch, capsys):
    monkeypatch.setenv("REDIS_URL", "redis://cache.example")

    assert 0 == main(["config", "check"])
    assert "ok       configuration: redis.* can be used: redis://cache.example:6379\n" == capsys.readouterr().out


def test_factory_of_credentials_is_imported_and_not_called(check, tmp_path, monkeypatch):
    (tmp_path / "shop_credentials.py").write_text("def make(config):\n    raise SystemExit('called')\n")
    monkeypatch.syspath_prepend(tmp_path)
    url = "REDIS_URL=redis://cache.example\nREDIS_CREDENTIALS="

    code, found = check(f"{url}shop_credentials:make")
    assert (0, "ok") == (code, found[-1][0])

    code, found = check(f"{url}shop_credentials:mak")
    assert (2, "fault") == (code, found[-1][0])
    assert "did you mean make?" in found[-1][1]
