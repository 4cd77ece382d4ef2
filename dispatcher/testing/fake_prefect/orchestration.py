"""Which states a Prefect server lets a flow run take, as a table of pure functions.

Follows the core flow policy of Prefect 3.8, and its minimal one for forced transitions: a rule
applies to some pairs of state types, and the first one that objects decides. Time-outs of pauses
and the expiry of concurrency leases are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import uuid4

from dispatcher.prefect_api.schemas import TERMINAL_STATES, OrchestrationStatus, StateType
from dispatcher.testing.fake_prefect import records
from dispatcher.testing.fake_prefect.transitions import Transition, Verdict

CONCURRENCY_SLOT_WAIT_SECONDS = 30

ALL = frozenset(StateType)
TERMINAL = TERMINAL_STATES
SLOT_HOLDING = frozenset({StateType.PENDING, StateType.RUNNING, StateType.CANCELLING})


Judge = Callable[[Transition], Verdict | None]


@dataclass(frozen=True)
class Rule:
    """A judge and the pairs of state types that it is asked about."""

    from_types: frozenset[StateType]
    to_types: frozenset[StateType]
    judge: Judge

    def applies_to(self, transition: Transition) -> bool:
        """Whether the transition is one of those."""
        return (
            transition.initial.type in self.from_types and transition.proposed.type in self.to_types
        )


def decide(transition: Transition, *, force: bool = False) -> Verdict:
    """What a server makes of the transition."""
    for rule in FORCED_RULES if force else RULES:
        verdict = rule.judge(transition) if rule.applies_to(transition) else None
        if verdict is not None:
            break
    else:
        verdict = _accepted(transition, force=force)
    return _with_slot_freed(transition, verdict)


def _accepted(transition: Transition, *, force: bool) -> Verdict:
    state = transition.proposed if force else _with_details_kept(transition)
    return Verdict(
        OrchestrationStatus.ACCEPT,
        state,
        takes_slot=not force and _asks_for_slot(transition) and transition.slots is not None,
        policy=None if force else _policy_after(transition),
    )


def _reject(reason: str, state: records.State | None = None) -> Verdict:
    return Verdict(OrchestrationStatus.REJECT, state, reason)


def _abort(reason: str) -> Verdict:
    return Verdict(OrchestrationStatus.ABORT, None, reason)


# The rules, in the order in which they are asked


def _made_already(transition: Transition) -> Verdict | None:
    mine = transition.proposed.state_details.transition_id
    if mine is None or mine != transition.initial.state_details.transition_id:
        return None
    return _reject("This run has already made this state transition.")


def _leaving_a_terminal_state(transition: Transition) -> Verdict | None:
    initial, proposed = transition.initial, transition.proposed
    if proposed.type in {StateType.CANCELLING, StateType.PAUSED, StateType.CRASHED}:
        return _abort(f"Run is already in terminal state {initial.type.value}.")
    if _is_stored_result(initial) and not proposed.is_final:
        return _reject("Run is already COMPLETED.")
    if proposed.type is StateType.SCHEDULED and transition.run.deployment_id is None:
        return _abort("Cannot reschedule a run without an associated deployment.")
    return _losing_a_result(transition)


def _losing_a_result(transition: Transition) -> Verdict | None:
    initial, proposed = transition.initial, transition.proposed
    if not _is_stored_result(initial) or proposed.type is not StateType.COMPLETED:
        return None
    if proposed.has_stored_result:
        return None
    return _reject(
        "Cannot overwrite a COMPLETED state that carries persisted result data with one that "
        "does not."
    )


def _is_stored_result(state: records.State) -> bool:
    return state.type is StateType.COMPLETED and state.has_stored_result


def _leaving_cancelling(_: Transition) -> Verdict:
    return _reject("Cannot transition flows that are cancelling to a state other than Cancelled.")


def _nothing_to_cancel(transition: Transition) -> Verdict | None:
    initial = transition.initial
    if initial.type is StateType.PAUSED:
        kind, idle = "Suspended", initial.state_details.pause_reschedule
    else:
        kind = "Scheduled"
        idle = not transition.run.infrastructure_pid or initial.name == "Resuming"
    if not idle:
        return None
    return _reject(
        f"{kind} flow run has no infrastructure to terminate.", _cancelled(transition.now)
    )


def _taken_already(transition: Transition) -> Verdict | None:
    initial, proposed = transition.initial, transition.proposed
    if initial.type is StateType.PENDING and proposed.name not in {initial.name, "Pending"}:
        return None
    return _abort(
        f"This run is in a {initial.type.value} state and cannot transition to a PENDING state."
    )


def _no_free_slot(transition: Transition) -> Verdict | None:
    if not _asks_for_slot(transition) or transition.run.deployment_id is None:
        return None
    if not transition.deployment_exists:
        return _abort("Deployment not found.")
    slots = transition.slots
    if slots is None or (slots.limit > 0 and slots.active < slots.limit):
        return None
    if slots.limit == 0:
        return _abort(
            "The deployment concurrency limit is 0. The flow will deadlock if submitted again."
        )
    reason = "Deployment concurrency limit reached."
    if slots.cancels_new:
        return _reject(reason, _cancelled(transition.now, reason))
    again = transition.now + timedelta(seconds=CONCURRENCY_SLOT_WAIT_SECONDS)
    return _reject(reason, _scheduled(transition.now, "AwaitingConcurrencySlot", again))


def _asks_for_slot(transition: Transition) -> bool:
    return (
        transition.proposed.type is StateType.PENDING
        and transition.initial.type not in SLOT_HOLDING
    )


def _not_late(transition: Transition) -> Verdict | None:
    if transition.proposed.name != "Late":
        return None
    if transition.initial.type is not StateType.SCHEDULED:
        return _reject("Only scheduled flows can be marked late.")
    if transition.initial.name == "Late":
        return _reject("This flow run is already marked late.")
    return None


def _pausing(transition: Transition) -> Verdict | None:
    proposed = transition.proposed
    verb = "suspend" if proposed.name == "Suspended" else "pause"
    if transition.initial.type is not StateType.RUNNING:
        return _reject(f"Cannot {verb} flows that are not currently running.")
    if proposed.state_details.pause_key in transition.run.empirical_policy.pause_keys:
        return _reject(f"This {verb} has already fired.")
    if proposed.state_details.pause_reschedule and transition.run.deployment_id is None:
        return _abort(f"Cannot {verb} flows without a deployment.")
    return None


def _resuming(transition: Transition) -> Verdict | None:
    initial, proposed = transition.initial, transition.proposed
    if proposed.type is StateType.PENDING:
        return _reject(
            f"This run cannot transition to the StateType.{proposed.type.name} state"
            f" from the StateType.{initial.type.name} state."
        )
    if initial.state_details.pause_reschedule and transition.run.deployment_id is None:
        return _reject(
            f"Cannot reschedule a {proposed.name.lower()} flow run without a deployment."
        )
    return None


def _too_early(transition: Transition) -> Verdict | None:
    scheduled = transition.initial.state_details.scheduled_time
    delay = round((scheduled - transition.now).total_seconds()) if scheduled else 0
    if delay <= 0:
        return None
    return Verdict(
        OrchestrationStatus.WAIT,
        reason="Scheduled time is in the future",
        delay_seconds=delay,
    )


def _retrying(transition: Transition) -> Verdict | None:
    policy = transition.run.empirical_policy
    if policy.retries is None or transition.run.run_count > policy.retries:
        return None
    again = transition.now + timedelta(seconds=policy.retry_delay or 0)
    state = _scheduled(transition.now, "AwaitingRetry", again, transition.proposed.message)
    lease = transition.initial.state_details.deployment_concurrency_lease_id
    return Verdict(
        OrchestrationStatus.REJECT,
        state.with_details(deployment_concurrency_lease_id=lease),
        "Retrying",
        policy=policy.model_copy(
            update={"resuming": False, "pause_keys": [], "retry_type": "in_process"}
        ),
    )


def _types(*types: StateType) -> frozenset[StateType]:
    return frozenset(types)


FORCED_RULES = (
    Rule(TERMINAL, TERMINAL, _losing_a_result),
    Rule(
        _types(StateType.SCHEDULED, StateType.PAUSED),
        _types(StateType.CANCELLING),
        _nothing_to_cancel,
    ),
)

RULES = (
    Rule(ALL, ALL, _made_already),
    Rule(TERMINAL, ALL, _leaving_a_terminal_state),
    Rule(_types(StateType.CANCELLING), ALL - {StateType.CANCELLED}, _leaving_cancelling),
    Rule(
        _types(StateType.SCHEDULED, StateType.PAUSED),
        _types(StateType.CANCELLING),
        _nothing_to_cancel,
    ),
    Rule(SLOT_HOLDING | {StateType.CANCELLED}, _types(StateType.PENDING), _taken_already),
    Rule(ALL - SLOT_HOLDING - {StateType.PAUSED}, _types(StateType.PENDING), _no_free_slot),
    Rule(ALL, _types(StateType.SCHEDULED), _not_late),
    Rule(ALL, _types(StateType.PAUSED), _pausing),
    Rule(_types(StateType.PAUSED), ALL, _resuming),
    Rule(_types(StateType.SCHEDULED, StateType.PENDING), _types(StateType.RUNNING), _too_early),
    Rule(_types(StateType.RUNNING), _types(StateType.FAILED), _retrying),
)


# What an accepted transition keeps, changes and frees


def _with_details_kept(transition: Transition) -> records.State:
    """The proposed state with the lease, and for Pending the due time, of the one before."""
    initial, proposed = transition.initial, transition.proposed
    kept = {}
    if proposed.state_details.deployment_concurrency_lease_id is None:
        lease = initial.state_details.deployment_concurrency_lease_id
        kept["deployment_concurrency_lease_id"] = lease
    if (
        proposed.type is StateType.PENDING
        and initial.type in {StateType.SCHEDULED, StateType.PENDING}
        and proposed.state_details.scheduled_time is None
    ):
        return proposed.with_details(**kept, scheduled_time=initial.state_details.scheduled_time)
    return proposed.with_details(**kept)


def _policy_after(transition: Transition) -> records.Policy | None:
    """The run's policy after an accepted transition; ``None`` if it stays as it is."""
    initial, proposed = transition.initial, transition.proposed
    changes: dict[str, object] = {}
    if initial.is_final and not proposed.is_final:
        changes = {"resuming": False, "pause_keys": [], "retry_type": None}
        if proposed.type is StateType.SCHEDULED:
            changes["retry_type"] = "reschedule"
    elif (initial.type, proposed.type) == (StateType.RUNNING, StateType.FAILED):
        changes = {"retry_type": None}
    elif initial.type is StateType.PAUSED:
        changes = {"resuming": True}
    elif proposed.type is StateType.PAUSED:
        key = proposed.state_details.pause_key or str(uuid4())
        changes = {"pause_keys": [*transition.run.empirical_policy.pause_keys, key]}
    return transition.run.empirical_policy.model_copy(update=changes) if changes else None


def _with_slot_freed(transition: Transition, verdict: Verdict) -> Verdict:
    """A run gives its slot back when it leaves the states that need one, but to retry at once."""
    state, initial = verdict.state, transition.initial
    if (
        state is None
        or initial.type not in SLOT_HOLDING
        or state.type in SLOT_HOLDING
        or initial.state_details.deployment_concurrency_lease_id is None
        or verdict.reason == "Retrying"
    ):
        return verdict
    return Verdict(verdict.status, state, verdict.reason, frees_slot=True, policy=verdict.policy)


def _cancelled(now: datetime, message: str | None = None) -> records.State:
    return records.State(type=StateType.CANCELLED, name="Cancelled", timestamp=now, message=message)


def _scheduled(
    now: datetime, name: str, scheduled_time: datetime, message: str | None = None
) -> records.State:
    state = records.State(type=StateType.SCHEDULED, name=name, timestamp=now, message=message)
    return state.with_details(scheduled_time=scheduled_time)
