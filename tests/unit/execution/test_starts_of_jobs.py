"""Runs whose job cannot be prepared or is not to be started, and deliveries."""

from __future__ import annotations

import threading
from concurrent import futures
from typing import Any
from uuid import uuid4

import pytest
from redis import RedisError

from dispatcher import planning
from dispatcher.ledger import claims, redis_ledger
from dispatcher.prefect_api import schemas
from executors import configuration
from tests import valkey
from tests.unit import parts
from tests.unit.execution.execution_scene import (
    READ_DEPLOYMENT,
    assert_finished,
    assert_not_started,
    ended,
)

S = schemas.StateType

# Jobs that cannot be prepared


def test_a_run_whose_deployment_is_gone_is_cancelled(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.objects.delete_deployment(scene.deployment.id)
    assert scene.execute(claim) == "CANCELLED"
    assert f"Deployment {scene.deployment.id} no longer exists" in (
        scene.last_message(claim.flow_run_id) or ""
    )
    assert not scene.script.began
    assert_finished(scene, claim)


@pytest.mark.parametrize(
    ("job_variables", "message"),
    [
        # the run's own variables do not fit
        ({"env": ["A"]}, "could not be submitted"),
        ({"env": {"A": "{{ prefect.blocks.secret.none }}"}}, "could not be submitted"),
    ],
)
def test_a_run_with_bad_job_variables_says_so_and_harms_no_other(
    scene: parts.Scene, job_variables: dict[str, Any], message: str
) -> None:
    bad, good = scene.claim(job_variables=job_variables), scene.claim()
    scene.script.result = ended(0, reported_state=S.COMPLETED)
    executing = scene.execution()
    assert executing.execute(bad, worker=parts.WORKER) == "CRASHED"
    assert message in (scene.last_message(bad.flow_run_id) or "")
    assert executing.execute(good, worker=parts.WORKER) == "COMPLETED"
    assert len(scene.script.configurations) == 1


def test_a_pool_that_has_no_template_yet_gives_jobs_the_default_one(scene: parts.Scene) -> None:
    claim = scene.claim(job_variables={"env": {"A": "1"}})
    scene.objects.change_pool(parts.POOL, base_job_template={})
    scene.script.result = ended(0, reported_state=S.COMPLETED)
    assert scene.execute(claim) == "COMPLETED"
    assert scene.script.configurations[0].env["A"] == "1"


def test_blocks_and_variables_are_read_where_the_job_is_prepared(scene: parts.Scene) -> None:
    scene.objects.variable("region", "north")
    block = scene.objects.block({"token": "s3cret"})
    slug = f"{block.block_type_slug}.{block.name}"
    claim = scene.claim(
        job_variables={
            "env": {
                "REGION": "{{ prefect.variables.region }}",
                "TOKEN": f"{{{{ prefect.blocks.{slug}.token }}}}",
            }
        }
    )
    scene.script.result = ended(0, reported_state=S.COMPLETED)
    assert scene.execute(claim) == "COMPLETED"
    env = scene.script.configurations[0].env
    assert (env["REGION"], env["TOKEN"]) == ("north", "s3cret")


class Faulty(configuration.BaseJobConfiguration):
    """The configuration of a stranger's executor."""

    def prepare_for_flow_run(self, *_: Any, **__: Any) -> None:
        raise LookupError("s3cret")


def test_a_fault_in_a_strangers_executor_crashes_the_run_not_the_task(
    scene: parts.Scene, caplog: pytest.LogCaptureFixture
) -> None:
    claim = scene.claim()
    scene.script.job_configuration = Faulty
    assert scene.execute(claim) == "CRASHED"
    message = scene.last_message(claim.flow_run_id) or ""
    assert message.endswith(
        "could not be submitted to infrastructure: LookupError, see the worker's log"
    )
    assert [record for record in caplog.records if record.exc_info]
    assert_finished(scene, claim)


def test_a_pool_that_was_deleted_crashes_the_run(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.objects.delete_pool(parts.POOL)
    assert scene.execute(claim) == "CRASHED"
    assert 'Work pool "pool" not found' in (scene.last_message(claim.flow_run_id) or "")


def test_a_pool_whose_type_has_no_executor_crashes_the_run(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.objects.delete_pool(parts.POOL)
    scene.objects.pool(parts.POOL, type="nomad")
    assert scene.execute(claim) == "CRASHED"
    assert "no executor is installed for work pools of type 'nomad'" in (
        scene.last_message(claim.flow_run_id) or ""
    )


def test_a_run_without_a_deployment_is_executed(scene: parts.Scene) -> None:
    run = scene.objects.run_without_deployment(work_pool_name=parts.POOL)
    claim = scene.claim(run=run)
    scene.script.result = ended(0, reported_state=S.COMPLETED)
    assert scene.execute(claim) == "COMPLETED"


# Runs that are not to be started


def test_a_run_that_was_cancelled_before_its_start_is_not_started(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.set_state(claim, S.CANCELLING)
    assert scene.execute(claim) == "CANCELLED"
    assert scene.last_message(claim.flow_run_id) == planning.CANCELLED_BEFORE_START.message
    assert_not_started(scene, claim)


@pytest.mark.parametrize("state_type", [S.RUNNING, S.CANCELLED, S.COMPLETED, S.SCHEDULED])
def test_a_run_that_is_not_pending_any_more_is_dropped_without_a_word(
    scene: parts.Scene, state_type: S
) -> None:
    claim = scene.claim()
    scene.objects.force(claim.flow_run_id, state_type)
    before = scene.history(claim.flow_run_id)
    assert scene.execute(claim) == "lost"
    assert scene.history(claim.flow_run_id) == before
    assert_not_started(scene, claim)


def test_a_run_that_is_pending_by_another_workers_claim_is_dropped(scene: parts.Scene) -> None:
    claim = scene.claim()
    theirs = schemas.StateProposal(type=S.PENDING, name="Pending", transition_id=uuid4())
    scene.quiet_api.set_flow_run_state(claim.flow_run_id, theirs, force=True)
    assert scene.execute(claim) == "lost"
    assert_not_started(scene, claim)


def test_a_run_that_was_deleted_is_not_started(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.objects.delete_run(claim.flow_run_id)
    assert scene.execute(claim) == "lost"
    assert_not_started(scene, claim)


def test_a_cancel_while_the_job_is_prepared_keeps_it_from_starting(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.hooks[READ_DEPLOYMENT] = lambda: scene.cancel(claim)
    assert scene.execute(claim) == "CANCELLED"
    assert scene.last_message(claim.flow_run_id) == planning.CANCELLED_BEFORE_START.message
    assert_not_started(scene, claim)


def test_a_lease_that_is_lost_while_the_job_is_prepared_keeps_it_from_starting(
    scene: parts.Scene,
) -> None:
    claim = scene.claim()
    scene.hooks[READ_DEPLOYMENT] = lambda: scene.supersede(claim)
    assert scene.execute(claim) == "lost"
    assert not scene.script.began
    assert scene.history(claim.flow_run_id) == ["Scheduled", "Pending"]


def test_without_the_ledger_nothing_is_started(
    scene: parts.Scene, valkey_server: valkey.ValkeyServer
) -> None:
    # Somebody else may have the lease by now, and there is no way to know.
    impatient = valkey_server.client(timeout_seconds=0.1)
    claim = scene.claim()
    scene.hooks[READ_DEPLOYMENT] = valkey_server.pause
    try:
        with pytest.raises(RedisError):
            scene.execute(claim, book=redis_ledger.RedisLedger(impatient))
    finally:
        valkey_server.resume()
        impatient.close()
    assert not scene.script.began
    assert scene.history(claim.flow_run_id) == ["Scheduled", "Pending"]
    assert scene.stage(claim.flow_run_id) is claims.Stage.HELD


# Deliveries


def test_a_second_delivery_beside_the_first_is_refused_and_writes_nothing(
    scene: parts.Scene,
) -> None:
    claim, answers = scene.claim(), []
    scene.script.result = ended(0, reported_state=S.COMPLETED)

    def deliver_again() -> None:
        scene.prefect.requests.clear()
        answers.append(scene.execute(claim))
        assert scene.prefect.requests.total() == 0

    scene.script.during = deliver_again
    assert scene.execute(claim) == "COMPLETED"
    assert answers == ["refused: held"]
    assert len(scene.script.configurations) == 1
    assert scene.nudged == [parts.POOL]


def test_a_second_delivery_after_the_first_is_refused_and_writes_nothing(
    scene: parts.Scene,
) -> None:
    claim = scene.claim()
    scene.execute(claim)
    scene.prefect.requests.clear()
    assert scene.execute(claim) == "refused: closed"
    assert scene.prefect.requests.total() == 0


@pytest.mark.parametrize("known_run", [True, False])
def test_a_message_that_no_claim_knows_is_refused(scene: parts.Scene, known_run: bool) -> None:
    claim = scene.claim()
    run_id = claim.flow_run_id if known_run else uuid4()
    stranger = claims.NewClaim(run_id, uuid4())
    assert scene.execute(stranger) == ("refused: superseded" if known_run else "refused: missing")
    assert scene.stage(claim.flow_run_id) is claims.Stage.PENDING


def test_of_many_deliveries_at_once_one_starts_the_job(scene: parts.Scene) -> None:
    claim, executing = scene.claim(), scene.execution()
    scene.script.result = ended(0, reported_state=S.COMPLETED)
    with futures.ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(lambda _: executing.execute(claim, worker=parts.WORKER), range(6)))
    assert outcomes.count("COMPLETED") == 1
    assert len(scene.script.configurations) == 1


def test_runs_are_executed_beside_each_other(scene: parts.Scene) -> None:
    made, executing = [scene.claim() for _ in range(4)], scene.execution()
    together = threading.Barrier(4)
    scene.script.during = lambda: together.wait(parts.STUCK_SECONDS)
    scene.script.result = ended(0, reported_state=S.COMPLETED)
    with futures.ThreadPoolExecutor(4) as pool:
        outcomes = pool.map(lambda claim: executing.execute(claim, worker=parts.WORKER), made)
        assert list(outcomes) == ["COMPLETED"] * 4
