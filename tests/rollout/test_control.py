"""The schema of control messages."""

from __future__ import annotations

import msgpack
import pytest

from nemo_mtdrive.rollout import control
from nemo_mtdrive.rollout.control import ControlError
from nemo_mtdrive.types import RolloutTask

TASK = RolloutTask("s", 4, 2**63 - 1, 7, 2, 0.0, "validation", 3)


def test_messages_and_tasks_come_back_as_they_were():
    message = control.decode(control.encode("tasks", batch=3, tasks=control.pack_tasks([TASK])))
    assert message.type == "tasks" and message["batch"] == 3
    assert control.unpack_tasks(message["tasks"]) == [TASK]


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (b"\xc1", "not msgpack"),
        (b"", "not msgpack"),
        (msgpack.packb([1]), "is a map, got list"),
        (msgpack.packb({"type": "stop"}), "schema None"),
        (msgpack.packb({"schema": 2, "type": "stop"}), "schema 2: this side speaks 1"),
        (msgpack.packb({"schema": 1, "type": "dance"}), "type 'dance'"),
        (msgpack.packb({"schema": 1, "type": ["stop"]}), "type"),
        (msgpack.packb({"schema": 1, "type": "stop", "now": True}), "want fields"),
        (msgpack.packb({"schema": 1, "type": "failed"}), "want fields"),
        (msgpack.packb({"schema": 1, "type": "failed", "pid": 1, "reason": 3}), "reason must be str, got int"),
        (msgpack.packb({"schema": 1, "type": "tasks", "batch": True, "tasks": []}), "batch must be int, got bool"),
        (b"\x00" * (control.LARGEST_MESSAGE + 1), "at most"),
    ],
)
def test_what_is_not_a_message_is_refused(frame, said):
    with pytest.raises(ControlError, match=said):
        control.decode(frame)


def test_what_is_not_a_task_is_refused():
    (packed,) = control.pack_tasks([TASK])
    for wrong in (3, {}, packed | {"extra": 1}, packed | {"group_size": "4"}):
        with pytest.raises(ControlError, match="task"):
            control.unpack_tasks([wrong])
    assert control.unpack_tasks([packed | {"temperature": 1}])[0].temperature == 1.0


def test_a_message_with_wrong_fields_is_not_sent():
    with pytest.raises(ControlError, match="want fields"):
        control.encode("progress", batch=1)
