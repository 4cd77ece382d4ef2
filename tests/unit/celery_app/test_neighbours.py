"""Which workers a new one may join."""

from __future__ import annotations

import dataclasses

import pytest

from dispatcher.celery_app import neighbours
from dispatcher.ledger import fleet
from dispatcher.prefect_api import ui_links

API = "http://prefect:4200/api"


def node(worker_name: str = "ours", prefect: str = API) -> fleet.Node:
    plain = fleet.Node("w@h", 1, slots=1, serves_control=False, version="1")
    return dataclasses.replace(plain, worker_name=worker_name, prefect=prefect)


def warnings(*nodes: fleet.Node) -> list[str]:
    said: list[str] = []
    neighbours.check(nodes, worker_name="ours", prefect=API, warn=said.append)
    return said


def test_a_worker_joins_its_own_dispatcher_and_workers_that_do_not_say_whose_they_are() -> None:
    assert warnings() == []
    assert warnings(node(), node(worker_name="", prefect="")) == []


def test_a_worker_of_another_dispatcher_is_refused_with_what_to_do() -> None:
    with pytest.raises(neighbours.ForeignFleetError, match=r"'theirs'.*DISPATCHER_NAMESPACE"):
        warnings(node(), node(worker_name="theirs"))


def test_another_address_of_prefect_may_be_the_same_server_and_is_named() -> None:
    [said] = warnings(node(prefect="http://127.0.0.1:4200/api"), node(prefect="http://x/api"))
    assert "http://127.0.0.1:4200/api" in said
    assert API in said


def test_credentials_in_an_address_are_shown_to_nobody() -> None:
    assert ui_links.without_credentials("https://me:secret@prefect/api") == ("https://prefect/api")
