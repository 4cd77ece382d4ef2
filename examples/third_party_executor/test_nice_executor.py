"""Shows that the executor does what the dispatcher asks of every executor, and its own part."""

from __future__ import annotations

from typing import ClassVar

from nice_executor import NiceExecutor

from dispatcher.testing import executors


class TestNiceExecutor(executors.ExecutorConformance):
    executor_class = NiceExecutor
    # A command that does not exist is found out by nice only, once the job has started.
    impossible_job_variables: ClassVar = {"working_dir": "/no/such/directory"}

    def test_niceness_reaches_the_job(self, jobs: executors.Jobs) -> None:
        job = jobs.start("""sh -c 'test "$(nice)" = 7'""", niceness=7)
        assert job.wait_ended().status_code == 0
