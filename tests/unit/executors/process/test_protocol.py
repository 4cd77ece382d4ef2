from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect._internal import attempt_control

from dispatcher.prefect_api import schemas
from executors.process.engine_control import protocol

HELLO = attempt_control.encode_negotiation(2, 1)
OLD_HELLO = attempt_control.encode_negotiation(1, 0)


def receipt_bytes(state_type: str = "COMPLETED") -> bytes:
    return attempt_control.encode_receipt(
        attempt_control.EngineOutcomeReceipt.state_reported(
            state_id=uuid.uuid4(), state_type=state_type, state_name="any"
        )
    )


def take_all(data: bytes) -> list[protocol.Message]:
    buffer, messages = bytearray(data), []
    while message := protocol.take_message(buffer):
        messages.append(message)
    return messages


def test_an_intent_acknowledgement_is_understood() -> None:
    assert take_all(b"a") == [protocol.IntentAcknowledged()]


def test_the_reply_to_a_hello_selects_receipts_where_the_engine_has_them() -> None:
    assert [take_all(HELLO), take_all(OLD_HELLO)] == [
        [protocol.Hello(attempt_control.encode_negotiation(2, 1))],
        [protocol.Hello(attempt_control.encode_negotiation(1, 0))],
    ]


def test_a_newer_engine_is_offered_the_version_known_here() -> None:
    newer = attempt_control.encode_negotiation(3, 0b11)

    assert take_all(newer) == [protocol.Hello(attempt_control.encode_negotiation(2, 1))]


@pytest.mark.parametrize("state_type", ["COMPLETED", "FAILED", "CANCELLED", "CRASHED", "PAUSED"])
def test_a_receipt_names_the_state_type(state_type: str) -> None:
    assert take_all(receipt_bytes(state_type)) == [protocol.Receipt(schemas.StateType(state_type))]


def test_a_receipt_of_an_unknown_state_type_names_none() -> None:
    assert take_all(receipt_bytes("HIBERNATING")) == [protocol.Receipt(None)]


def test_a_receipt_of_an_aborted_run_names_no_state() -> None:
    aborted = attempt_control.EngineOutcomeReceipt.orchestration_aborted()

    assert take_all(attempt_control.encode_receipt(aborted)) == [protocol.Receipt(None)]


def test_the_intents_are_those_of_prefect() -> None:
    assert protocol.INTENT_BYTES == attempt_control.BYTE_FOR_INTENT
    assert protocol.RECEIPT_ACK == attempt_control.RECEIPT_ACK


@given(cuts=st.lists(st.integers(min_value=1, max_value=40), min_size=1))
def test_messages_may_arrive_in_any_pieces(cuts: list[int]) -> None:
    data = HELLO + receipt_bytes("FAILED")
    buffer, messages = bytearray(), []
    while data:
        size = cuts.pop() if cuts else len(data)
        buffer += data[:size]
        data = data[size:]
        while message := protocol.take_message(buffer):
            messages.append(message)

    assert [type(message) for message in messages] == [protocol.Hello, protocol.Receipt]
    assert not buffer


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"\x00XY\x02\x01",  # not Prefect's hello
        b"\x01\xff\xff\xff\xff",  # a receipt of 4 GB
        b"\x01\x00\x00\x00\x01{",  # not JSON
        b"\x01\x00\x00\x00\x02[]",  # not an object
    ],
)
def test_anything_else_is_an_error(data: bytes) -> None:
    with pytest.raises(protocol.ProtocolError):
        protocol.take_message(bytearray(data))
