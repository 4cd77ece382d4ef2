"""The commands of ``docs/deploy.md`` for machines of different kinds, as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from dispatcher.prefect_api import schemas
from tests import light_jobs
from tests.conftest import NewStack

GUIDE = Path(__file__).parents[2] / "docs" / "deploy.md"
CHAPTER = "## Machines of different kinds"
RUNS = 4

# By the names in the commands: who executes the runs of a pool.
SERVED_BY = {"gpu": {"gpu"}, "small": {"gpu", "small"}, "inside": {"inside"}}


def commands() -> list[tuple[str, dict[str, str], list[str]]]:
    """Of each worker in the guide: its name there, its settings, its further arguments."""
    chapter = GUIDE.read_text().partition(CHAPTER)[2]
    [script] = re.findall(r"```sh\n(.*?)```", chapter, re.DOTALL)[:1]
    exported: dict[str, str] = {}
    found = []
    for line in script.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["export"]:
            exported |= dict(word.split("=", 1) for word in words[1:])
        elif "celery" in words:
            start = words.index("celery")
            own = dict(word.split("=", 1) for word in words[:start])
            assert words[start : start + 3] == ["celery", "-A", "dispatcher"]
            name = words[words.index("-n") + 1].partition("@")[0]
            found.append((name, exported | own, words[start + 3 :]))
    return found


def test_the_guides_commands_have_each_pool_served_by_its_machines_alone(
    new_stack: NewStack,
) -> None:
    with new_stack(*SERVED_BY) as stack:
        schedule = str(stack.directory / "schedule")
        for name, settings, words in commands():
            # As on a machine of its own, with a place for what beat remembers.
            place = ["-s", schedule] if "-B" in words else []
            worker = stack.start(name, *words, *place, "--loglevel", "INFO", settings=settings)
            worker.wait_for_text(" ready.")
        runs = {}
        for pool in SERVED_BY:
            stack.wait_until_served(pool)
            deployment = stack.deployment("none", pool=pool)
            runs[pool] = [
                light_jobs.run(stack, deployment, *light_jobs.COMPLETE) for _ in range(RUNS)
            ]
        for pool, machines in SERVED_BY.items():
            ends = {run.wait_for_end().type for run in runs[pool]}
            assert ends == {schemas.StateType.COMPLETED}
            seen = {light_jobs.seen(run)[-1]["environ"]["EXECUTED_BY"] for run in runs[pool]}
            assert seen <= machines
