"""Where settings come from, which are misspelt, and what of them is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dispatcher import errors, settings
from dispatcher.settings import misspellings, model, origins, prefect_files
from tests.unit.settings.test_settings import environment

__all__ = ["environment"]

SECRET = "hunter2"


def test_what_files_say_is_a_setting_and_reaches_runs_by_the_environment(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "prefect.toml").write_text(
        f'[api]\nurl = "http://toml/api"\nkey = "{SECRET}"\n[logging]\nlevel = "ERROR"\n'
    )
    # So that they are gone after the test.
    for name in ("PREFECT_API_KEY", "PREFECT_LOGGING_LEVEL"):
        environment.setenv(name, "")
        environment.delenv(name)
    loaded = settings.load(tmp_path)
    assert loaded.prefect_api_url == "http://127.0.0.1:4200/api"  # the environment's own
    assert loaded.prefect_api_key is not None
    assert loaded.prefect_api_key.get_secret_value() == SECRET
    assert os.environ["PREFECT_LOGGING_LEVEL"] == "ERROR"


def test_a_file_that_is_no_toml_is_named_in_one_line(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "prefect.toml").write_text("[api\n")
    with pytest.raises(errors.SettingsError, match=r"prefect\.toml cannot be read") as caught:
        settings.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DISPATCHER_LEASE_SECOND", "DISPATCHER_LEASE_SECONDS"),
        ("DISPATCHER_WORKPOOLS", "DISPATCHER_WORK_POOLS"),
        ("dispatcher_work_pool", "DISPATCHER_WORK_POOLS"),
        ("DISPATCHER_PREFECT_API_URL", "PREFECT_API_URL"),
    ],
)
def test_what_was_meant_by_a_misspelt_setting_is_said(
    environment: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    meant: str,
) -> None:
    environment.setenv(name, "1")
    settings.load()
    [said] = caplog.messages
    assert said == f"{name} is no setting of the dispatcher; did you mean {meant}?"
    environment.delenv("DISPATCHER_WORK_POOLS")
    with pytest.raises(errors.SettingsError, match=f"did you mean {meant}"):
        settings.load()


def test_nothing_is_said_of_settings_and_of_what_processes_tell_each_other(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert misspellings.find([*misspellings.known(), *misspellings.INTERNAL, "OTHER"]) == []
    [said] = misspellings.find(["DISPATCHER_XYZZY"])
    assert said.endswith("is no setting of the dispatcher and is left out of account")


def test_each_setting_says_where_it_is_from_and_no_secret(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("DISPATCHER_REDIS_URL", f"redis://me:{SECRET}@host/0")
    environment.setenv(
        "DISPATCHER_BROKER_URL", f"sentinel://:{SECRET}@host/name?db=1&sentinel_password={SECRET}"
    )
    environment.setenv("PREFECT_API_URL", f"https://me:{SECRET}@host/api")
    environment.setenv("PREFECT_CLIENT_CUSTOM_HEADERS", json.dumps({"X-Token": SECRET}))
    found = {"PREFECT_API_KEY": prefect_files.Found(SECRET, "prefect.toml")}
    environment.setenv("PREFECT_API_KEY", SECRET)
    given = set(os.environ) - set(found)
    listed = {each.variable: each for each in origins.list_all(settings.load(), given, found)}
    assert SECRET not in repr(listed) + repr(found)
    assert listed["DISPATCHER_REDIS_URL"].value == "redis://me:********@host/0"
    assert listed["DISPATCHER_BROKER_URL"].value.endswith("/name?db=1&sentinel_password=********")
    assert listed["PREFECT_API_KEY"] == origins.Origin(
        "PREFECT_API_KEY", "********", "prefect.toml"
    )
    assert listed["DISPATCHER_WORK_POOLS"].source == "environment"
    assert listed["DISPATCHER_POLL_INTERVAL"] == origins.Origin(
        "DISPATCHER_POLL_INTERVAL", "5.0", "default"
    )
    assert len(listed) == len(model.Settings.model_fields)


def test_the_command_shows_them(tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text(
        f'active = "a"\n[profiles.a]\nPREFECT_API_URL = "http://u:{SECRET}@host/api"\n'
    )
    environ = {
        "PATH": os.environ["PATH"],
        "PREFECT_HOME": str(tmp_path),
        "DISPATCHER_WORK_POOLS": "a,b",
    }
    command = [str(Path(sys.executable).with_name("dispatcher")), "config"]
    done = [
        subprocess.run(
            [*command, *options],
            env={**environ, "COLUMNS": "200"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for options in ((), ("--output", "json"))
    ]
    rows = {row["variable"]: row for row in json.loads(done[1])}
    assert rows["PREFECT_API_URL"]["source"].startswith("profile 'a' of ")
    assert rows["DISPATCHER_WORK_POOLS"]["value"] == "a,b"
    assert "profile 'a'" in done[0]
    assert SECRET not in "".join(done)
