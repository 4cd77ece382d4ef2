"""A package that is not ours brings an executor: found, complete, and served by real workers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from dispatcher.prefect_api import schemas
from dispatcher.testing import prefect_objects
from tests.conftest import NewStack

EXAMPLE = Path(__file__).parents[2] / "examples" / "third_party_executor"
INSTALL_SECONDS = 120
TEST_SECONDS = 240


def environment(installed: Path) -> dict[str, str]:
    """The environment of a Python that has the package installed."""
    inherited = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    path = [str(installed), *inherited.get("PYTHONPATH", "").split(os.pathsep)]
    return {**inherited, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def python(installed: Path, *arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment(installed),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=TEST_SECONDS,
        check=False,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example, so that a build leaves nothing in the original."""
    return Path(shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("source") / "example"))


@pytest.fixture(scope="module")
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed: a directory of its own, beside our environment."""
    target = tmp_path_factory.mktemp("installed")
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    # With the build backend of our own environment, so that nothing is downloaded.
    options: Sequence[str] = ("--no-deps", "--no-build-isolation", "--offline")
    done = subprocess.run(
        [uv, "pip", "install", *options, "--target", str(target), str(source)],
        env={
            **os.environ,
            "UV_CACHE_DIR": str(tmp_path_factory.mktemp("uv-cache")),
            "VIRTUAL_ENV": sys.prefix,
        },
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


def test_registry_finds_it_with_its_template(installed: Path, tmp_path: Path) -> None:
    code = """
import executors
assert executors.get_all_available_executor_types() == ["docker", "nice", "process"]
kind = executors.get_executor_class_from_type("nice")
template = kind.get_default_base_job_template()
assert template["job_configuration"]["niceness"] == "{{ niceness }}"
assert template["variables"]["properties"]["niceness"]["default"] == 10
assert kind.get_description()
"""
    done = python(installed, "-c", code, directory=tmp_path)
    assert done.returncode == 0, done.stderr


def test_it_passes_the_conformance_suite(installed: Path, source: Path) -> None:
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:valkey", "-p", "no:celery")
    done = python(installed, "-m", "pytest", *options, directory=source)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout
    assert " passed" in done.stdout


def test_pool_of_its_type_is_created_and_served(installed: Path, new_stack: NewStack) -> None:
    pool = prefect_objects.new_name("pool")
    settings = {"DISPATCHER_POOL_TYPE": "nice", "PYTHONPATH": environment(installed)["PYTHONPATH"]}
    with new_stack(pool, **settings) as stack:
        stack.worker_with_beat(concurrency=3)
        stack.wait_until_served(pool)
        found = stack.objects.client.read_work_pool(pool)
        assert found.type == "nice"
        assert "niceness" in found.base_job_template["variables"]["properties"]

        own, default = (
            stack.run(
                stack.deployment(
                    "notes_niceness", file="nice_flows.py", job_variables=dict(variables)
                )
            )
            for variables in ({"niceness": 7}, {})
        )

        for run, niceness in ((own, 7), (default, 10)):
            assert run.wait_for_end().type is schemas.StateType.COMPLETED
            assert run.lines() == [f"niceness {niceness}"]
