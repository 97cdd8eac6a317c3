"""Keeps the results of a run: shards of rows, an index of finished inputs, and what the run was asked for.

    OUT/run.json          model, decoding, digits, format; and the driver that may add shards
    OUT/shards/part-*     the rows, one for each input; nothing else is ever there
    OUT/index/*.jsonl.gz  which inputs each shard holds
    OUT/pending/          shards that workers have written and the driver has not taken yet

A worker writes a whole shard to `pending`, and only the driver moves it to `shards`, so a shard is there
whole or not at all, and what a forgotten worker writes is never taken. The shards are the truth: one that the
index lacks, because the driver was killed before it wrote it, is read again. A driver that finds another's
token in run.json stops.
OUT is a path that all machines see, or a URL of fsspec.
"""

from __future__ import annotations

import gzip
import io
import json
import posixpath
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from edge_asr.cluster.inputs import file_system, is_local
from edge_asr.errors import ConfigError, require
from edge_asr.printable import json_line

ShardFormat = Literal["parquet", "jsonl"]
SHARD_FORMATS: tuple[ShardFormat, ...] = get_args(ShardFormat)
Row = dict[str, Any]

INDEX_EVERY = 200
"""Shards between two files of the index: as many have to be read again after a kill."""
_RUN, _SHARDS, _PENDING, _INDEX = "run.json", "shards", "pending", "index"


@dataclass(slots=True)
class Store:
    """The folder of results, for a driver or a worker.

    Attributes:
        place: path or URL of the folder.
        shard_format: "parquet" or "jsonl".
        token: of the driver.
    """

    place: str
    shard_format: ShardFormat
    token: str = ""

    def begin(self, settings: dict[str, Any], *, force: bool = False) -> bool:
        """Become the driver of the folder, with a new token; tell whether it has results.

        Args:
            settings: what the rows depend on, ready for JSON.
            force: delete the results of an earlier run.

        Raises:
            ConfigError: the folder holds something else, or the results of other settings.
        """
        fs, root = file_system(self.place)
        settings = {"format": self.shard_format, **settings}
        run, before = self._join(root, _RUN), None
        if fs.exists(run):
            try:
                before = json.loads(fs.cat_file(run))["settings"]
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{self.place}/{_RUN} is damaged; name another folder with -o") from error
        elif fs.isfile(root) or (fs.isdir(root) and any(map(_is_shown, fs.ls(root, detail=False)))):
            raise ConfigError(
                f"{self.place} is not a folder of results (it has no {_RUN}); name another with -o"
            )
        if before is not None and not force:
            for key in (*settings, *before):
                if before.get(key) != settings.get(key):
                    raise ConfigError(
                        f"{self.place} holds results of another run: {key} was {before.get(key)!r} and is "
                        f"{settings.get(key)!r} now; name another folder with -o, or add --force to restart"
                    )
        for folder in (_PENDING,) if before is not None and not force else (_PENDING, _SHARDS, _INDEX):
            if fs.isdir(self._join(root, folder)):
                fs.rm(self._join(root, folder), recursive=True)
        self.token = secrets.token_hex(4)
        self._put(fs, run, json_line({"format_version": 1, "settings": settings, "driver": self.token}))
        for folder in (_SHARDS, _PENDING, _INDEX):
            fs.makedirs(self._join(root, folder), exist_ok=True)
        return before is not None and not force

    def finished(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each shard that is there, with the ids of its inputs."""
        fs, root = file_system(self.place)
        there = {posixpath.basename(path) for path in self._ls(fs, root, _SHARDS)}
        for path in sorted(self._ls(fs, root, _INDEX)):
            for line in gzip.decompress(fs.cat_file(path)).splitlines():
                entry = json.loads(line)
                if entry["shard"] in there:
                    there.remove(entry["shard"])
                    yield entry["shard"], entry["ids"]
        missing = [(name, self._read_ids(fs, self._join(root, _SHARDS, name))) for name in sorted(there)]
        if missing:
            self.note(missing)
        yield from missing

    def note(self, shards: Sequence[tuple[str, Sequence[str]]]) -> None:
        """Add a file to the index: shards, and the ids of their inputs."""
        fs, root = file_system(self.place)
        lines = "".join(json_line({"shard": name, "ids": list(ids)}) + "\n" for name, ids in shards)
        name = f"{self.token}-{shards[0][0].split('.')[0]}.jsonl.gz"
        self._put(fs, self._join(root, _INDEX, name), gzip.compress(lines.encode(), 5))

    def write(self, name: str, rows: Sequence[Row]) -> None:
        """Write the rows of a shard to `pending`."""
        fs, root = file_system(self.place)
        make = _parquet_from_rows if self.shard_format == "parquet" else _jsonl_from_rows
        self._put(fs, self._join(root, _PENDING, name), make(rows))

    def take(self, name: str) -> None:
        """Move a shard from `pending` to `shards`.

        Raises:
            ConfigError: another driver has begun to write here.
        """
        fs, root = file_system(self.place)
        if json.loads(fs.cat_file(self._join(root, _RUN)))["driver"] != self.token:
            raise ConfigError(
                f"another run writes to {self.place} now, so this one has stopped; let one run at a time"
            )
        fs.mv(self._join(root, _PENDING, name), self._join(root, _SHARDS, name))

    def name_shard(self, number: int) -> str:
        """Return the name of a shard, which no other driver gives."""
        return f"part-{number:06d}-{self.token}.{self.shard_format}"

    def _read_ids(self, fs: Any, path: str) -> list[str]:
        if self.shard_format == "jsonl":
            return [json.loads(line)["id"] for line in fs.cat_file(path).splitlines()]
        parquet = require("pyarrow.parquet", extra="ray")
        with fs.open(path, "rb") as file:
            ids: list[str] = parquet.read_table(file, columns=["id"])["id"].to_pylist()
        return ids

    @staticmethod
    def _join(*parts: str) -> str:
        return posixpath.join(*parts)

    def _ls(self, fs: Any, root: str, folder: str) -> list[str]:
        fs.invalidate_cache()
        path = self._join(root, folder)
        return list(filter(_is_shown, fs.ls(path, detail=False))) if fs.exists(path) else []

    @staticmethod
    def _put(fs: Any, path: str, content: bytes | str) -> None:
        """Write a file at once: object stores do, elsewhere it is written beside its place and moved."""
        data = content.encode() if isinstance(content, str) else content
        if not is_local(fs):
            fs.pipe_file(path, data)
            return
        beside = f"{posixpath.dirname(path)}/.{posixpath.basename(path)}.{secrets.token_hex(4)}"
        fs.makedirs(posixpath.dirname(path), exist_ok=True)
        fs.pipe_file(beside, data)
        fs.mv(beside, path)


def _is_shown(path: str) -> bool:
    """Tell whether a file is none that was being written when its writer was killed (`Store._put`)."""
    return not posixpath.basename(path).startswith(".")


def _jsonl_from_rows(rows: Sequence[Row]) -> bytes:
    return "".join(json_line(row) + "\n" for row in rows).encode()


def _parquet_from_rows(rows: Sequence[Row]) -> bytes:
    arrow = require("pyarrow", extra="ray")
    parquet = require("pyarrow.parquet", extra="ray")
    seconds, text = arrow.float64(), arrow.string()
    word = arrow.struct([("text", text), ("start_s", seconds), ("end_s", seconds), ("confidence", seconds)])
    columns = {
        "id": text, "audio_filepath": text, "text": text, "words": arrow.list_(word),
        "confidence": seconds, "duration": seconds, "error": text,
    }  # fmt: skip
    buffer = io.BytesIO()
    table = arrow.Table.from_pylist(list(rows), schema=arrow.schema(list(columns.items())))
    parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
