from __future__ import annotations

from pathlib import Path

import pytest

from executors import errors
from executors.process import ProcessJobConfiguration
from executors.process import launch as launching


def launch(*argv: str) -> launching.Launch:
    return launching.Launch(
        job_id="0", argv=argv, directory=Path("/"), environment={"PASSWORD": "hunter2"}
    )


def test_a_command_is_split_as_a_shell_does() -> None:
    assert launching.split_command("sh -c 'exit 3' \"a b\"") == ("sh", "-c", "exit 3", "a b")


@pytest.mark.parametrize("command", [None, "", "   "])
def test_an_empty_command_is_refused(command: str | None) -> None:
    with pytest.raises(errors.LaunchError, match="no command"):
        launching.split_command(command)


def test_a_command_with_an_open_quote_is_refused_without_being_quoted() -> None:
    with pytest.raises(errors.LaunchError, match="quoting") as raised:
        launching.split_command("run --password='hunter2")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("argv", "is_engine"),
    [
        (("/venv/bin/python", "-m", "prefect.engine"), True),
        (("uv", "run", "python", "-m", "prefect.engine"), True),
        (("sh", "-c", "exec python -m prefect.engine"), True),
        (("prefect", "flow-run", "execute"), False),
        (("sleep", "1"), False),
    ],
)
def test_an_engine_is_recognised_also_in_a_wrapper(argv: tuple[str, ...], is_engine: bool) -> None:
    assert launch(*argv).is_engine is is_engine


def test_a_launch_shows_no_secret() -> None:
    assert "hunter2" not in repr(launch("true"))


def test_the_dispatchers_own_variables_stay_behind() -> None:
    inherited = {
        "DISPATCHER_REDIS_URL": "redis://:secret@host",
        "DISPATCHER_JOB_ID": "that of an outer job",
        "CELERY_BROKER_URL": "redis://:secret@host",
        "FLOWER_BASIC_AUTH": "user:secret",
        "HOME": "/home/user",
    }

    assert launching.job_environment(ProcessJobConfiguration(), inherited) == {"HOME": "/home/user"}


def test_what_the_job_sets_wins_over_what_is_inherited() -> None:
    configuration = ProcessJobConfiguration(env={"A": "job", "B": "job", "C": "job"})

    environment = launching.job_environment(configuration, {"A": "outer", "D": "outer"})

    assert environment == {"A": "job", "B": "job", "C": "job", "D": "outer"}


def test_a_variable_that_is_set_to_null_is_not_inherited() -> None:
    configuration = ProcessJobConfiguration(env={"GONE": None})

    assert launching.job_environment(configuration, {"GONE": "outer", "HERE": "1"}) == {"HERE": "1"}


def test_a_job_may_set_a_variable_that_the_dispatcher_would_not_pass_on() -> None:
    configuration = ProcessJobConfiguration(env={"CELERY_BROKER_URL": "the flow's own"})

    environment = launching.job_environment(configuration, {"CELERY_BROKER_URL": "ours"})

    assert environment == {"CELERY_BROKER_URL": "the flow's own"}
