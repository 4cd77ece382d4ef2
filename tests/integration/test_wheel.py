"""The wheel in an empty environment, used by README's own lines, as by somebody new."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import environments, redis_server
from tests import prefect_server as prefect_servers

ROOT = Path(__file__).parents[2]
SECONDS = 120.0
FLOWS = """
from prefect import flow


@flow(log_prints=True)
def hello() -> None:
    print("hello from", __import__("dispatcher").__file__)
"""


def build(directory: Path) -> Path:
    """Build the wheel."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*command, "--directory", directory], cwd=ROOT, check=True, capture_output=True)
    [wheel] = directory.glob("*.whl")
    return wheel


def readme_block(language: str, containing: str) -> str:
    """The code block of the README with these words."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    [found] = [block for block in blocks if containing in block]
    return str(found)


@pytest.mark.timeout(3 * SECONDS)
def test_the_readmes_lines_work_with_the_wheel_alone(
    tmp_path: Path,
    prefect_server: prefect_servers.PrefectServer,
    tcp_redis: redis_server.RedisServer,
) -> None:
    if reason := environments.missing():
        pytest.skip(reason)
    project = tmp_path / "project"
    project.mkdir()
    set_up = readme_block("sh", "pip install")
    session = readme_block("console", "cat deploy.py")
    [requirement] = re.findall(r"pip install '(.*?)'", set_up)
    name, _, extras = requirement.partition("[")
    python = environments.make_with(
        tmp_path / "environment", f"{name}[{extras} @ {build(tmp_path / 'dist').as_uri()}"
    )
    exports = dict(re.findall(r"export (\w+)=(\S+)", set_up))
    exports |= {
        "PREFECT_API_URL": prefect_server.api_url,
        "DISPATCHER_REDIS_URL": tcp_redis.new_url(),
    }
    environ = {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "NO_COLOR": "1",
        **exports,
    }

    def run(line: str) -> str:
        done = subprocess.run(
            ["bash", "-c", line],
            env=environ,
            cwd=project,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    (project / "flows.py").write_text(FLOWS)
    [deploy] = re.findall(r"\$ cat deploy\.py\n(.*?)\$ ", session, re.DOTALL)
    (project / "deploy.py").write_text(deploy)
    lines = [line.removeprefix("$ ") for line in session.splitlines() if line.startswith("$ ")]
    [worker_line] = [line for line in lines if line.startswith("celery")]
    run(lines[0])
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            worker_line.removesuffix("&").split(),
            env=environ,
            cwd=project,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        run("python deploy.py")
        said = run(next(line for line in lines if "deployment run" in line))
        assert worker.poll() is None
    finally:
        os.killpg(worker.pid, signal.SIGTERM)
        worker.wait(SECONDS)
    assert "Flow run finished successfully" in said
    assert str(python.parent.parent) in log.read_text()
    assert "Traceback" not in log.read_text()
