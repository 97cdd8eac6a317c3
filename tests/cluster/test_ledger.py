"""How inputs are shared out: each once, similar ones together, none twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.cluster.inputs import Input
from edge_asr.cluster.ledger import UNKNOWN_S, Ledger
from edge_asr.errors import ManifestError


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    ledger = Ledger()
    yield ledger
    ledger.close()


@given(
    lengths=st.lists(st.sampled_from([0.0, 0.5, 3.0, 20.0, 4000.0]), max_size=60),
    done=st.sets(st.integers(0, 59)),
    shard_s=st.sampled_from([1.0, 60.0, 500.0]),
    most=st.sampled_from([1, 7, 1000]),
)
def test_what_is_left_is_in_one_shard_each(
    lengths: list[float], done: set[int], shard_s: float, most: int
) -> None:
    ledger = Ledger()
    ledger.add(Input(id=str(n), place="p", duration_s=s) for n, s in enumerate(lengths))
    ledger.finish(map(str, done))
    shards = list(ledger.plan(shard_s, most))
    left = {n: s for n, s in enumerate(lengths) if n not in done}
    ids = [int(one.id) for shard in shards for one in shard.inputs]
    assert sorted(ids) == sorted(left)
    assert [left[n] for n in ids] == sorted(left.values(), reverse=True)
    for shard in shards:
        assert 1 <= len(shard.inputs) <= most
        assert shard.seconds <= shard_s or len(shard.inputs) == 1
    n_left, seconds = ledger.count(done=False)
    assert n_left == len(left)
    assert seconds == pytest.approx(sum(s or UNKNOWN_S for s in left.values()))
    ledger.close()


def test_two_inputs_with_one_id(ledger: Ledger) -> None:
    with pytest.raises(ManifestError, match="two inputs have the id 'a'; give each row of the manifest an"):
        ledger.add([Input(id="a", place="x"), Input(id="b", place="y"), Input(id="a", place="z")])


def test_an_input_is_as_it_was(ledger: Ledger) -> None:
    one = Input(id="ü", place="s3://ü/x.wav", duration_s=2.5, problem="bad")
    ledger.add([one])
    (shard,) = ledger.plan(60.0)
    assert shard.inputs == (one,)
