"""What is done to the machinery, and how it is undone."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import psutil
import redis

from tests import faulty_proxy
from tests.chaos import pauses
from tests.chaos import world as worlds

World = worlds.World

# Longer than a lease and its margin are 13 s.
LONGEST_FREEZE_SECONDS = 20.0
LONGEST_REFUSAL_SECONDS = 12.0
DRAIN_SECONDS = 30.0
DUPLICATES = 3


@dataclass(frozen=True)
class Later:
    """What is to be done after so many seconds, which may lead to more."""

    seconds: float
    act: Callable[[], Later | None]


# Begins a fault; ``None`` if there is nothing now to do it to.
Fault = Callable[[World, random.Random], Later | None]


def _free_worker(world: World, dice: random.Random) -> worlds.Position | None:
    free = [each for each in world.workers if not each.busy and each.process.is_running]
    return dice.choice(free) if free else None


def kill_worker(world: World, dice: random.Random) -> Later | None:
    """SIGKILL; a supervisor starts it again after a moment."""
    position = _free_worker(world, dice)
    if position is None:
        return None
    world.occupy(position)
    position.process.send_signal(signal.SIGKILL)
    return Later(dice.uniform(0.5, 4.0), lambda: _replace(world, position))


def _replace(world: World, position: worlds.Position) -> None:
    world.refill(position)
    world.release(position)


def kill_pool_child(world: World, dice: random.Random) -> Later | None:
    """What the kernel does to one that uses too much memory."""
    position = _free_worker(world, dice)
    children = position.pool_children() if position else []
    if position is None or not children:
        return None
    world.occupy(position)
    worlds.signal_all([dice.choice(children)], signal.SIGKILL)
    world.release(position)
    return Later(0.0, lambda: None)


def freeze_worker_with_jobs(world: World, dice: random.Random) -> Later | None:
    """What a paused virtual machine looks like."""
    return _freeze(world, dice, jobs=True)


def freeze_worker_without_jobs(world: World, dice: random.Random) -> Later | None:
    """A worker that hangs while what it has started goes on."""
    return _freeze(world, dice, jobs=False)


def _freeze(world: World, dice: random.Random, *, jobs: bool) -> Later | None:
    position = _free_worker(world, dice)
    if position is None:
        return None
    world.occupy(position)
    frozen = position.tree(jobs=jobs)
    worlds.signal_all(frozen, signal.SIGSTOP)
    seconds = dice.uniform(worlds.LEASE_SECONDS, LONGEST_FREEZE_SECONDS)
    return Later(seconds, lambda: _thaw(world, position, frozen))


def _thaw(world: World, position: worlds.Position, frozen: list[psutil.Process]) -> None:
    worlds.signal_all(frozen, signal.SIGCONT)
    world.release(position)


def drain_worker(world: World, dice: random.Random) -> Later | None:
    """SIGTERM, and after some patience SIGQUIT."""
    return _restart(world, dice, signal.SIGTERM)


def quit_worker(world: World, dice: random.Random) -> Later | None:
    """SIGQUIT: it stops its runs."""
    return _restart(world, dice, signal.SIGQUIT)


def _restart(world: World, dice: random.Random, number: signal.Signals) -> Later | None:
    position = _free_worker(world, dice)
    if position is None:
        return None
    world.occupy(position)
    position.process.send_signal(number)
    return Later(1.0, lambda: _wait_for_end(world, position, DRAIN_SECONDS))


def _wait_for_end(world: World, position: worlds.Position, patience: float) -> Later | None:
    if not position.process.is_running:
        return Later(0.0, lambda: _replace(world, position))
    if patience <= 0:
        harder = signal.SIGQUIT if patience > -DRAIN_SECONDS else signal.SIGKILL
        position.process.send_signal(harder)
    return Later(1.0, lambda: _wait_for_end(world, position, patience - 1.0))


def kill_beat(world: World, dice: random.Random) -> Later | None:
    """SIGKILL of a beat."""
    beats = [each for each in world.positions if not each.is_worker and not each.busy]
    if not beats:
        return None
    position = dice.choice(beats)
    world.occupy(position)
    position.process.send_signal(signal.SIGKILL)
    return Later(dice.uniform(0.5, 6.0), lambda: _replace(world, position))


def restart_redis(world: World, dice: random.Random) -> Later | None:
    """Redis goes away and comes back with its data."""
    if world.redis_busy:
        return None
    pause = world.pause_of_redis()
    world.redis.stop()
    return Later(dice.uniform(0.0, 12.0), lambda: _redis_again(world, pause))


def _redis_again(world: World, pause: pauses.Pause) -> None:
    world.redis.start()
    pause.end()


def pause_redis(world: World, dice: random.Random) -> Later | None:
    """Redis hangs."""
    if world.redis_busy:
        return None
    pause = world.pause_of_redis()
    world.redis.pause()
    return Later(dice.uniform(1.0, LONGEST_FREEZE_SECONDS), lambda: _redis_goes_on(world, pause))


def _redis_goes_on(world: World, pause: pauses.Pause) -> None:
    world.redis.resume()
    pause.end()


def flush_redis(world: World, dice: random.Random) -> Later | None:
    """Redis loses everything: claims, leases, messages, slots."""
    return _tell_redis(world, lambda client: client.flushall())


def drop_redis_connections(world: World, dice: random.Random) -> Later | None:
    """What a fail-over does to the clients."""
    return _tell_redis(world, lambda client: client.client_kill_filter(_type="normal"))


def _tell_redis(world: World, command: Callable[[redis.Redis], object]) -> Later | None:
    if world.redis_busy:
        return None
    pause = world.pause_of_redis()
    with contextlib.closing(world.redis.client(timeout_seconds=5.0)) as client:
        command(client)
    pause.end()
    return Later(0.0, lambda: None)


def restart_broker(world: World, dice: random.Random) -> Later | None:
    """RabbitMQ is killed and comes back with what it has kept."""
    if world.rabbitmq is None or world.broker_busy:
        return None
    pause = world.pause_of_broker()
    world.rabbitmq.stop(signal.SIGKILL)
    return Later(dice.uniform(0.0, 5.0), lambda: _broker_again(world, pause))


def _broker_again(world: World, pause: pauses.Pause) -> None:
    assert world.rabbitmq is not None
    world.rabbitmq.start()
    pause.end()


def deliver_twice(world: World, dice: random.Random) -> Later | None:
    """The broker delivers old and new messages again."""
    if world.redis_busy or world.broker_busy:
        return None
    run_ids = [UUID(file.name) for file in world.marks.iterdir()]
    for run_id in dice.sample(run_ids, min(DUPLICATES, len(run_ids))):
        claim = world.stack.ledger.get(run_id)
        if claim is not None:
            world.stack.send_execute(claim.new)
    return Later(0.0, lambda: None) if run_ids else None


def restart_prefect(world: World, dice: random.Random) -> Later | None:
    """The Prefect server goes away and comes back."""
    if world.prefect_busy:
        return None
    pause = world.pause_of_prefect()
    world.prefect.stop()
    return Later(dice.uniform(0.0, LONGEST_REFUSAL_SECONDS), lambda: _prefect_again(world, pause))


def _prefect_again(world: World, pause: pauses.Pause) -> None:
    world.prefect.start()
    pause.end()


def pause_prefect(world: World, dice: random.Random) -> Later | None:
    """The Prefect server hangs."""
    if world.prefect_busy:
        return None
    pause = world.pause_of_prefect()
    world.prefect.pause()
    return Later(dice.uniform(1.0, LONGEST_REFUSAL_SECONDS), lambda: _prefect_goes_on(world, pause))


def _prefect_goes_on(world: World, pause: pauses.Pause) -> None:
    world.prefect.resume()
    pause.end()


def refuse_half(world: World, dice: random.Random) -> Later | None:
    """503 to half of the dispatcher's requests."""
    return _disturb(world, dice, faulty_proxy.Fault.REFUSE, share=0.5)


def lose_answers(world: World, dice: random.Random) -> Later | None:
    """A fifth of the dispatcher's requests are carried out, but it never hears so."""
    return _disturb(world, dice, faulty_proxy.Fault.DROP_REPLY, share=0.2)


def _disturb(
    world: World, dice: random.Random, fault: faulty_proxy.Fault, *, share: float
) -> Later | None:
    if world.prefect_busy:
        return None
    pause = world.pause_of_prefect()
    own_dice = random.Random(dice.random())
    world.proxy.decide = lambda _request: fault if own_dice.random() < share else None
    return Later(dice.uniform(3.0, LONGEST_REFUSAL_SECONDS), lambda: _calm(world, pause))


def _calm(world: World, pause: pauses.Pause) -> None:
    world.proxy.decide = faulty_proxy.no_faults
    pause.end()


# What is done, and how often in comparison.
FAULTS: dict[Fault, int] = {
    kill_worker: 5,
    kill_pool_child: 5,
    freeze_worker_with_jobs: 3,
    freeze_worker_without_jobs: 3,
    drain_worker: 2,
    quit_worker: 3,
    kill_beat: 2,
    restart_redis: 2,
    pause_redis: 2,
    flush_redis: 2,
    drop_redis_connections: 2,
    restart_broker: 2,
    deliver_twice: 4,
    restart_prefect: 1,
    pause_prefect: 1,
    refuse_half: 2,
    lose_answers: 2,
}

# These kill nothing that executes a run, so no run is crashed for them.
GENTLE = frozenset(
    {
        kill_beat,
        restart_redis,
        pause_redis,
        flush_redis,
        drop_redis_connections,
        restart_broker,
        deliver_twice,
        restart_prefect,
        pause_prefect,
        refuse_half,
        lose_answers,
    }
)

# What a round with this broker is about: RabbitMQ's end, or the end of Redis' primary.
OF_BROKER: dict[str, Fault] = {"rabbitmq": restart_broker, "sentinel": restart_redis}

# What is told to one server, whoever is the primary.
ONE_REDIS = frozenset({flush_redis, drop_redis_connections})

# What nothing protects from while nobody can kill a job from another host: one that lives on.
SAME_HOST = frozenset({freeze_worker_with_jobs, freeze_worker_without_jobs})
