"""DDS and CDR for the tests of the ROS 2 example, with type support made from the lists of ros_messages.py.

As a program it is the second process: it reads a topic from DDS, decodes the bytes with rosbags, which shares
nothing with the DDS library that sent them, and prints each message as a line of JSON.

    python ros_wire.py DOMAIN TOPIC TYPE SECONDS
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from ros_messages import FIELDS, full_name, plain

#: Loopback alone, without multicast: nothing leaves this machine.
CONFIGURATION = """<CycloneDDS><Domain id="any"><General><Interfaces>
<NetworkInterface address="127.0.0.1" multicast="false"/></Interfaces><AllowMulticast>false</AllowMulticast>
</General><Discovery><ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>20</MaxAutoParticipantIndex>
<Peers><Peer address="127.0.0.1"/></Peers></Discovery></Domain></CycloneDDS>"""


def make_typestore() -> Any:
    """The types of rosbags, with those that it does not ship made from the text of a definition."""
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    for name, fields in FIELDS.items():
        if name not in store.fielddefs:
            store.register(get_types_from_msg("".join(f"{kind} {field}\n" for kind, field in fields), name))
    return store


def rosbags_from_message(store: Any, message: Any) -> Any:
    """The message of rosbags that says the same as one of the stand-in."""
    import numpy as np

    return _convert(message, lambda kind, values: store.types[kind](**values), np.asarray)


def dds_from_message(message: Any) -> Any:
    """The message of the DDS library that says the same as one of the stand-in."""
    return _convert(message, lambda kind, values: dds_type(kind)(**values), list)


def _convert(
    value: Any, make: Callable[[str, dict[str, Any]], Any], make_numbers: Callable[[Any], Any]
) -> Any:
    if hasattr(value, "KIND"):
        fields = [field for _, field in FIELDS[value.KIND]]
        values = {field: _convert(getattr(value, field), make, make_numbers) for field in fields}
        return make(value.KIND, values)
    if isinstance(value, list):
        return [_convert(one, make, make_numbers) for one in value]
    if hasattr(value, "typecode"):
        return make_numbers(value)
    return value[0] if isinstance(value, bytes) else value


_DDS_TYPES: dict[str, Any] = {}


def dds_type(name: str) -> Any:
    """The DDS type of a message, named as ROS 2 names it: `hri_msgs::msg::dds_::LiveSpeech_`."""
    from cyclonedds.idl import make_idl_struct, types

    if name not in _DDS_TYPES:
        fields = {}
        for kind, field in FIELDS[name]:
            single = kind.removesuffix("[]")
            if full_name(single) in FIELDS:
                of: Any = dds_type(full_name(single))
            else:
                of = str if single == "string" else getattr(types, single)
            fields[field] = types.sequence[of] if kind.endswith("[]") else of
        package, _, short = name.split("/")
        _DDS_TYPES[name] = make_idl_struct(f"{short}_", f"{package}.msg.dds_.{short}_", fields)
    return _DDS_TYPES[name]


def make_endpoint(domain: int, topic: str, kind: str, *, writes: bool, qos: tuple[int, bool]) -> Any:
    """A writer or a reader of a topic as ROS 2 maps it to DDS; `qos` is depth, and whether it is reliable."""
    from cyclonedds.core import Policy, Qos
    from cyclonedds.domain import DomainParticipant
    from cyclonedds.pub import DataWriter
    from cyclonedds.sub import DataReader
    from cyclonedds.topic import Topic
    from cyclonedds.util import duration

    depth, is_reliable = qos
    reliability = (
        Policy.Reliability.Reliable(duration(seconds=1)) if is_reliable else Policy.Reliability.BestEffort
    )
    participant = DomainParticipant(domain)
    make = DataWriter if writes else DataReader
    return make(
        participant,
        Topic(participant, f"rt{topic}", dds_type(kind)),
        qos=Qos(reliability, Policy.History.KeepLast(depth)),
    )


class Raw:
    """Bytes that came over the wire, not decoded by the library that brought them."""

    def __init__(self, data: bytes) -> None:
        self.data = bytes(data)


def main() -> None:
    """Print the messages of a topic until standard input ends, for at most SECONDS."""
    domain, topic, kind, seconds = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
    os.environ["CYCLONEDDS_URI"] = CONFIGURATION
    store = make_typestore()
    dds_type(kind).deserialize = classmethod(lambda cls, data, **options: Raw(data))
    reader = make_endpoint(domain, topic, kind, writes=False, qos=(100, True))
    os.set_blocking(sys.stdin.fileno(), False)
    end, is_over = time.monotonic() + seconds, False
    while time.monotonic() < end:
        is_over = is_over or sys.stdin.buffer.read(1) == b""
        taken = [sample for sample in reader.take(100) if isinstance(sample, Raw)]
        for sample in taken:
            message = plain(store.deserialize_cdr(sample.data, kind))
            line = json.dumps({"cdr": sample.data.hex(), "message": message})
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        if is_over and not taken:
            break
        time.sleep(0.02)


if __name__ == "__main__":
    main()
