"""What Flower shows if nobody says otherwise."""

from __future__ import annotations

from dispatcher.celery_app import flower_defaults

FLOWER = ["celery", "-A", "dispatcher", "flower"]


def test_a_users_own_choice_wins() -> None:
    environ = {"FLOWER_MAX_TASKS": "7"}
    flower_defaults.apply(environ, FLOWER)
    assert environ["FLOWER_MAX_TASKS"] == "7"
    assert environ["FLOWER_TASKS_COLUMNS"].startswith("name,args,state")


def test_other_processes_are_left_as_they_are() -> None:
    environ: dict[str, str] = {}
    flower_defaults.apply(environ, ["celery", "-A", "dispatcher", "worker"])
    assert environ == {}
