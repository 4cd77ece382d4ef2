"""What time it is by the server's clock."""

from __future__ import annotations

from datetime import UTC, datetime
from email import utils

import pytest

from dispatcher.prefect_api import server_clock

NOW = 1_900_000_000.0


class Host:
    """A host's clock, and the dates of a server whose clock is ``ahead``."""

    def __init__(self) -> None:
        self.time = NOW
        self.clock = server_clock.ServerClock(lambda: self.time)

    def hear(self, ahead: float, *, late: float = 0.0) -> None:
        """An answer arrives so many seconds after its date."""
        self.time += late + 1.0
        self.clock.note(utils.formatdate(self.time + ahead - late, usegmt=True))

    def lead(self) -> float:
        return (self.clock.now() - datetime.fromtimestamp(self.time, UTC)).total_seconds()


@pytest.mark.parametrize("ahead", [300.0, -300.0])
def test_the_servers_time_counts_where_the_hosts_is_far_off(ahead: float) -> None:
    host = Host()
    assert host.lead() == 0.0
    host.hear(ahead)
    assert host.lead() == pytest.approx(ahead, abs=1.0)
    assert host.clock.offset == pytest.approx(ahead, abs=1.0)


@pytest.mark.parametrize("ahead", [0.0, 2.0, -2.0])
def test_a_difference_within_what_an_answer_can_tell_is_none(ahead: float) -> None:
    host = Host()
    host.hear(ahead)
    assert host.lead() == 0.0


def test_answers_that_come_late_do_not_make_the_servers_clock_slow() -> None:
    host = Host()
    host.hear(0.0)
    for _ in range(server_clock.SAMPLES - 1):
        host.hear(0.0, late=20.0)
    assert host.lead() == 0.0


def test_a_clock_that_was_set_right_is_noticed() -> None:
    host = Host()
    host.hear(300.0)
    for _ in range(server_clock.SAMPLES):
        host.hear(0.0)
    assert host.lead() == 0.0


@pytest.mark.parametrize("date", [None, "", "yesterday"])
def test_an_answer_without_a_date_says_nothing(date: str | None) -> None:
    host = Host()
    host.clock.note(date)
    assert host.lead() == 0.0
