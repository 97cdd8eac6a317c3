"""Where the caches of streams lie on the device: in the buffers of an engine, so that a step copies nothing.

The caches that an engine takes and those that it gives are two sets of buffers of the same shape. A step
reads one set and writes the other, and the next step the other way round (`RunShape.swapped`). A stream
keeps its row: a row whose window is empty passes through a step unchanged, so all streams of a set move on
together, whichever of them has something to hear. Copied are a stream that comes from elsewhere, and a state
that somebody still holds where the next step writes (a fork, say): it gets a slot, device memory of its own,
which is used again once no state refers to it. The caches of a state never change, wherever they lie.
What this file does not do: run a step (stream_runner.py). Calls come one at a time; states may die in any
thread.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Collection, Iterator, Sequence

from edge_asr.runtime.engine.cuda import Cuda
from edge_asr.runtime.engine.loaded import LoadedPlan

_ALIGNMENT = 256


class CacheRow:
    """The caches of one stream after a step: a row of a set, or a slot."""

    __slots__ = ("__weakref__", "place", "slot")

    def __init__(self) -> None:
        self.place: tuple[_Sets, int, int] | None = None  # which of the two sets, and the row
        self.slot: _Slot | None = None


class _Slot:
    """Device memory for the caches of one stream, free once nothing refers to this."""

    __slots__ = ("__weakref__", "address")

    def __init__(self, address: int, free: deque[int]) -> None:
        self.address = address
        weakref.finalize(self, free.append, address).atexit = False


class _Sets:
    """The two sets of a profile: what lies in each row, and which set the next step reads."""

    def __init__(self, profile: int, n_rows: int) -> None:
        self.profile, self.n_rows = profile, n_rows
        self.now = 0
        self._rows: list[list[weakref.ref[CacheRow] | None]] = [[None] * n_rows for _ in range(2)]

    def get(self, which: int, index: int) -> CacheRow | None:
        """Return the row if a state refers to it."""
        found = self._rows[which][index]
        return None if found is None else found()

    def put(self, which: int, index: int, row: CacheRow | None) -> None:
        """Note that a row's caches lie here now, and nowhere else; None: those of no stream."""
        self._rows[which][index] = None if row is None else weakref.ref(row)
        if row is not None:
            if row.place is not None:
                sets, *where = row.place
                sets._rows[where[0]][where[1]] = None
            row.place, row.slot = (self, which, index), None

    def living(self, which: int) -> Iterator[tuple[int, CacheRow]]:
        """List the rows of a set to which a state refers."""
        for index in range(self.n_rows):
            row = self.get(which, index)
            if row is not None:
                yield index, row


class StreamCaches:
    """The caches of all streams of an engine.

    Args:
        plan, cuda: the engine's.
        names: of the caches that it takes, and of those that it gives, in the same order.
        row_bytes: of a stream in each.
        n_rows: streams of each profile.
    """

    def __init__(
        self,
        plan: LoadedPlan,
        cuda: Cuda,
        names: tuple[Sequence[str], Sequence[str]],
        row_bytes: Sequence[int],
        n_rows: Sequence[int],
    ) -> None:
        self._plan, self._cuda, self._names, self._row_bytes = plan, cuda, names, row_bytes
        self._sets = [_Sets(profile, n) for profile, n in enumerate(n_rows)]
        self._free: deque[int] = deque()  # addresses of slots; any thread may drop the last state

    def gather(self, profile: int, rows: Sequence[CacheRow | None]) -> tuple[list[int], bool]:
        """Bring the caches of a step's streams to where its engine reads; None is those of a new stream.

        Returns:
            Row of each stream, and whether the step has to be a swapped one.

        Raises:
            DeviceError: CUDA failed; every state is still whole.
        """
        sets = self._sets[profile]
        there: dict[int, int] = {}  # number in the step, by row of the set
        for number, row in enumerate(rows):
            if row is not None and row.place is not None and row.place[:2] == (sets, sets.now):
                there.setdefault(row.place[2], number)
        positions = {number: index for index, number in there.items()}
        free = self._free_rows(sets, there)
        for number, row in enumerate(rows):
            if number not in positions:
                positions[number] = next(free)
                self._bring(row, sets, positions[number])
        for _, held in sets.living(1 - sets.now):
            self._save(held)
        return [positions[number] for number in range(len(rows))], sets.now == 1

    def advance(self, profile: int, positions: Sequence[int]) -> list[CacheRow]:
        """Note that a step ran; return the caches of its streams."""
        sets = self._sets[profile]
        before, after = sets.now, 1 - sets.now
        for index, row in list(sets.living(before)):
            if index not in positions:
                sets.put(after, index, row)
        following = [CacheRow() for _ in positions]
        for index, row in zip(positions, following, strict=True):
            sets.put(after, index, row)
        sets.now = after
        return following

    def vacate(self, profile: int) -> None:
        """Save every state of a profile from runs that are no steps.

        Raises:
            DeviceError: CUDA failed.
        """
        for which in range(2):
            for _, row in self._sets[profile].living(which):
                self._save(row)

    def _free_rows(self, sets: _Sets, taken: Collection[int]) -> Iterator[int]:
        """List rows of the set that is read next: those that no state needs, then others, which are saved."""
        lying = dict(sets.living(sets.now))
        others = [index for index in range(sets.n_rows) if index not in taken]
        yield from (index for index in others if index not in lying)
        for index in others:
            if index in lying:
                self._save(lying[index])
                yield index

    def _bring(self, row: CacheRow | None, sets: _Sets, index: int) -> None:
        targets = self._addresses(sets, sets.now, index)
        if row is None:
            for address, n_bytes in zip(targets, self._row_bytes, strict=True):
                self._cuda.fill(address, 0, n_bytes, self._plan.stream)
            return
        self._copy(row, targets)
        if row.place is None or row.place[:2] != (sets, sets.now):  # else it is in the step twice
            sets.put(sets.now, index, row)

    def _save(self, row: CacheRow) -> None:
        """Give caches a slot."""
        try:
            address = self._free.popleft()
        except IndexError:
            address = self._plan.allocate(sum(map(_aligned, self._row_bytes)))
        slot = _Slot(address, self._free)
        self._copy(row, self._slot_addresses(slot))
        assert row.place is not None
        sets, which, index = row.place
        sets.put(which, index, None)
        row.place, row.slot = None, slot

    def _copy(self, row: CacheRow, targets: Sequence[int]) -> None:
        if row.place is not None:
            sources = self._addresses(*row.place)
        else:
            assert row.slot is not None
            sources = self._slot_addresses(row.slot)
        for target, source, n_bytes in zip(targets, sources, self._row_bytes, strict=True):
            self._cuda.copy_on_device(target, source, n_bytes, self._plan.stream)

    def _addresses(self, sets: _Sets, which: int, index: int) -> list[int]:
        buffers = self._plan.lane(sets.profile).buffers
        return [
            buffers[name].device + index * n_bytes
            for name, n_bytes in zip(self._names[which], self._row_bytes, strict=True)
        ]

    def _slot_addresses(self, slot: _Slot) -> list[int]:
        ends = itertools.accumulate(map(_aligned, self._row_bytes), initial=slot.address)
        return list(ends)[:-1]


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
