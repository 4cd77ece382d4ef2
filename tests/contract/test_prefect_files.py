"""Settings in files: what we read is what Prefect itself has, in any constellation of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dispatcher.settings import prefect_files

ADDRESS = "PREFECT_API_URL"
PROFILES = """
active = "cloud"

[profiles.cloud]
PREFECT_API_URL = "http://of-the-profile/api"
PREFECT_API_KEY = "key-of-the-profile"
PREFECT_LOGGING_LEVEL = "WARNING"

[profiles.other]
PREFECT_API_URL = "http://of-another-profile/api"
PREFECT_API_ENABLE_HTTP2 = true
PREFECT_CLIENT_MAX_RETRIES = 7
"""


@dataclass(frozen=True)
class Constellation:
    """The files of a project and of a home, and the environment, of one process."""

    name: str
    environ: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    home: str | None = PROFILES
    names: tuple[str, ...] = (ADDRESS,)


CONSTELLATIONS = (
    Constellation("nothing", home=None),
    Constellation("a profile", names=(ADDRESS, "PREFECT_API_KEY", "PREFECT_LOGGING_LEVEL")),
    Constellation("the environment", {ADDRESS: "http://of-the-environment/api"}),
    Constellation(
        "another profile",
        {"PREFECT_PROFILE": "other"},
        names=(
            ADDRESS,
            "PREFECT_API_KEY",
            "PREFECT_API_ENABLE_HTTP2",
            "PREFECT_CLIENT_MAX_RETRIES",
        ),
    ),
    Constellation("no such profile", {"PREFECT_PROFILE": "missing"}),
    Constellation("an env file", files={".env": f"{ADDRESS}=http://of-the-env-file/api\nX=1\n"}),
    Constellation(
        "an env file with quotes, exports and comments",
        files={".env": f"# here\nexport {ADDRESS.lower()}='http://quoted/api' # there\n"},
    ),
    Constellation(
        "prefect.toml",
        files={
            "prefect.toml": '[api]\nurl = "http://of-toml/api"\n[logging]\nlevel = "ERROR"\n',
        },
        names=(ADDRESS, "PREFECT_API_KEY", "PREFECT_LOGGING_LEVEL"),
    ),
    Constellation(
        "pyproject.toml",
        files={
            "pyproject.toml": '[project]\nname = "x"\n'
            '[tool.prefect.api]\nurl = "http://of-pyproject/api"\n',
        },
    ),
    Constellation(
        "all at once",
        {"PREFECT_LOGGING_LEVEL": "DEBUG"},
        {
            ".env": "PREFECT_API_KEY=of-the-env-file\n",
            "prefect.toml": '[api]\nurl = "http://of-toml/api"\nkey = "of-toml"\n',
            "pyproject.toml": '[tool.prefect.api]\nurl = "http://of-pyproject/api"\n'
            "request_timeout = 7.5\n",
        },
        names=(ADDRESS, "PREFECT_API_KEY", "PREFECT_LOGGING_LEVEL", "PREFECT_API_REQUEST_TIMEOUT"),
    ),
    Constellation(
        "headers",
        files={"prefect.toml": '[client.custom_headers]\nX-A = "1"\nx-b = "2"\n'},
        names=("PREFECT_CLIENT_CUSTOM_HEADERS",),
    ),
    Constellation(
        "headers of a profile",
        home='active = "a"\n[profiles.a]\nPREFECT_CLIENT_CUSTOM_HEADERS = \'{"X-A": "1"}\'\n',
        names=("PREFECT_CLIENT_CUSTOM_HEADERS",),
    ),
    Constellation(
        "lists",
        files={"prefect.toml": '[logging]\nextra_loggers = ["b", "a"]\n'},
        names=("PREFECT_LOGGING_EXTRA_LOGGERS",),
    ),
    Constellation(
        "profiles elsewhere, by an env file",
        files={
            ".env": "PREFECT_PROFILES_PATH=mine.toml\n",
            "mine.toml": f'active = "m"\n[profiles.m]\n{ADDRESS} = "http://mine/api"\n',
        },
    ),
    Constellation(
        "profiles elsewhere, by prefect.toml",
        files={
            "prefect.toml": 'profiles_path = "mine.toml"\n',
            "mine.toml": f'active = "m"\n[profiles.m]\n{ADDRESS} = "http://mine/api"\n',
        },
    ),
    Constellation("broken profiles", home="active = [\n"),
)

# Each in the interpreter of Prefect's that is asked, one after the other: importing it takes long.
THEIRS = """
import json, os, sys
from prefect.settings.models.root import Settings
for directory, environ in json.loads(sys.stdin.read()):
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environ)
    print(json.dumps(Settings().to_environment_variables(exclude_unset=True)))
"""


def prepare(each: Constellation, directory: Path) -> dict[str, str]:
    """Write the files, and return the environment."""
    home, project = directory / "home", directory / "project"
    home.mkdir(parents=True)
    project.mkdir()
    if each.home is not None:
        (home / "profiles.toml").write_text(each.home)
    for name, text in each.files.items():
        (project / name).write_text(text)
    return {"PREFECT_HOME": str(home), **each.environ}


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """What we have found in each, and what Prefect has."""
    asked: list[tuple[str, dict[str, str]]] = []
    for each in CONSTELLATIONS:
        root = tmp_path_factory.mktemp("constellation")
        asked.append((str(root / "project"), prepare(each, root)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", THEIRS],
        input=json.dumps(asked),
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path_factory.mktemp("nobody"))},
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = [json.loads(line) for line in done.stdout.splitlines()]
    found = {}
    here = Path.cwd()
    for each, (directory, environ), their in zip(CONSTELLATIONS, asked, theirs, strict=True):
        os.chdir(directory)  # profiles may be named relative to it
        try:
            read = prefect_files.read(environ, Path(directory))
        finally:
            os.chdir(here)
        ours = {name: one.text for name, one in read.items()} | environ
        found[each.name] = (ours, their)
    return found


@pytest.mark.parametrize("each", CONSTELLATIONS, ids=lambda each: each.name)
def test_we_find_what_prefect_finds(
    each: Constellation, both: dict[str, tuple[dict[str, str], dict[str, str]]]
) -> None:
    ours, theirs = both[each.name]
    for name in each.names:
        found, expected = ours.get(name), theirs.get(name)
        if name.endswith("HEADERS"):
            assert json.loads(found or "{}") == json.loads(expected or "{}")
        else:
            assert found == expected, name
    known = set(theirs) - set(ours) - {"PREFECT_HOME", "PREFECT_PROFILES_PATH"}
    # What its own default profile says is no user's setting.
    assert known <= {"PREFECT_SERVER_EPHEMERAL_ENABLED"}
