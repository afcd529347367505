"""Settings: read from the environment and from flags, and refused in a sentence that names them."""

from pathlib import Path

import pytest

from backend import settings as settings_module
from backend.errors import InvalidSettings
from backend.settings import Settings, flag, read, variable, without_password


def test_without_anything_the_defaults_serve() -> None:
    settings = read()
    assert (settings.port, settings.model, settings.redis_url, settings.cache) == (9090, "gner-mini", "", "on")
    assert (settings.worker, settings.train_after, settings.train_device) == ("on", 20, "auto")
    assert settings.auth is None
    assert settings.predict_deadline_s < 100, "Label Studio waits 100 s"


def test_the_environment_is_read_and_a_flag_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1111")
    monkeypatch.setenv("GNER_CACHE", "off")
    assert (read().port, read().cache) == (1111, "off")
    assert (read(port="2222", cache=None).port, read(port="2222").cache) == (2222, "off")


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(variable(name), "")
    assert read() == Settings()


def test_a_variable_of_somebody_else_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNER_NO_SUCH_SETTING", "x")
    monkeypatch.setenv("MODEL", "x")
    assert read() == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "http"),
        ("GNER_DTYPE", "float16"),
        ("GNER_DECODING", "fast"),
        ("GNER_BATCH_TOKENS", "-1"),
        ("GNER_CACHE", "maybe"),
        ("GNER_CACHE_ENTRIES", "0"),
        ("GNER_CACHE_DAYS", "0"),
        ("GNER_PREDICT_DEADLINE_S", "-3"),
        ("GNER_THREADS", "1"),
        ("GNER_WORKER", "maybe"),
        ("GNER_TRAIN_AFTER", "-1"),
        ("GNER_TRAIN_AFTER", "often"),
        ("REDIS_URL", "localhost:6379"),
        ("LABEL_STUDIO_URL", "localhost:8080"),
        ("LOG_LEVEL", "LOUD"),
    ],
)
def test_a_wrong_value_is_named_with_variable_flag_and_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettings) as caught:
        read()
    field = next(field for field in Settings.model_fields if variable(field) == name)
    said = str(caught.value)
    assert said.startswith(f"{name}={value!r} ({flag(field)}): ")
    assert "\n" not in said


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(InvalidSettings, match=r"PORT='0'.*; LOG_LEVEL='LOUD'"):
        read(port="0", log_level="loud")


@pytest.mark.parametrize("given", [{"basic_auth_user": "ada"}, {"basic_auth_pass": "pass"}])
def test_user_and_password_come_together(given: dict[str, str]) -> None:
    with pytest.raises(InvalidSettings, match="BASIC_AUTH_USER and BASIC_AUTH_PASS") as caught:
        read(**given)
    assert "'pass'" not in str(caught.value)
    assert read(basic_auth_user="ada", basic_auth_pass="x").auth == ("ada", "x")


def test_secrets_are_not_shown() -> None:
    settings = read(basic_auth_user="ada", basic_auth_pass="s3cret", label_studio_api_key="k3y")
    assert "s3cret" not in repr(settings)
    assert "k3y" not in repr(settings)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://ada:s3cret@store:6379/0", "redis://***@store:6379/0"),
        ("rediss://:s3c@ret/x@store", "rediss://***@store"),
        ("s3cret@store", "***@store"),
        ("redis://store", "redis://store"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_a_mistyped_url_does_not_show_its_password() -> None:
    with pytest.raises(InvalidSettings) as caught:
        read(redis_url="redis:/ada:s3cret@store")
    assert "s3cret" not in str(caught.value)
    assert "@store" in str(caught.value)


def test_hosts_are_separated_by_commas() -> None:
    assert read(allowed_hosts=" Gner.example.org, b ,").allowed_host_names == {"gner.example.org", "b"}


def test_names_are_distinct_and_every_setting_is_explained() -> None:
    fields = Settings.model_fields
    assert len({variable(name) for name in fields}) == len({flag(name) for name in fields}) == len(fields)
    for name, field in fields.items():
        assert field.description, name
        assert variable(name) == variable(name).upper()


def test_another_process_reads_the_same_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(
        port="1234",
        model_dir="some folder",
        cache_days="0.5",
        basic_auth_user="ada",
        basic_auth_pass="p w",
        label_studio_url="http://x/",
    )
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert read() == settings


def test_the_embedded_store_lies_under_model_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store_dir = read(model_dir="relative").store_dir
    assert store_dir.is_absolute()
    assert store_dir.is_relative_to(tmp_path / "relative")
    assert settings_module.read(model_dir="other").store_dir != store_dir
