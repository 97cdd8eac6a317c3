"""Tune and measure what hangs on the weights of tiny-en, and write its model card.

    python scripts/recipes/tiny_en/tune.py --data ../shared/data --commands .work/grammar

It follows embed.py and works on the bundle that embed.py put into the package: weights of the language model
(`edge-asr lm tune`), thresholds of grammars (`grammar tune --save`), tables of confidence (`evaluate
--calibrate-confidence`), then error rates by set, precision and mode, then streams with chunks of 160, 320
and 640 ms of the same weights. card.md, filled with all of it, becomes the card.

One thread does everything. What is found is kept in the folder of `--work`, for this bundle, so the command
goes on where it was stopped; another bundle begins anew. `--every N` takes each Nth clip of a set
of more than 100; the card says how many clips it was. It does not train, and changes no weights.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from string import Template
from typing import Any

import click

from edge_asr.atomic import write_file
from edge_asr.audio import read_audio
from edge_asr.benchmark.timing import restart_with_threads
from edge_asr.bundle.folder import EMBEDDED_MODELS, Bundle
from edge_asr.export import CasePlan, StreamingOptions, export_bundle
from edge_asr.manifest import read_manifest
from edge_asr.markdown import markdown_table
from edge_asr.metrics import compute_error_rates
from edge_asr.runtime.decoding.greedy import greedy_decode
from edge_asr.runtime.self_test import stream_log_probs
from edge_asr.runtime.streaming_model import StreamingModel

HERE = Path(__file__).resolve().parent
SETS = {
    "an4_dev": "AN4 dev",
    "librispeech_dev": "LibriSpeech dev",
    "librispeech5_dev": "Mini LibriSpeech dev",
    "commonvoice_dev": "Common Voice dev",
}
#: Which clips tune the language model: each `step`th of a set, from `first` on.
TUNING = {"librispeech5_dev": (3, 6), "commonvoice_dev": (3, 12)}
SMALL = 100
CHUNKS_MS = (160, 320, 640)
PRECISIONS = ("fp32", "int8")
NAMES = {"fp32": "float32", "int8": "INT8"}
GATE_FAILED = 3
Row = dict[str, Any]


class Results:
    """What was found for these models, kept in a file after each step."""

    def __init__(self, path: Path, models: str) -> None:
        self._path = path
        kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
        self._found: dict[str, Any] = kept if kept.get("models") == models else {"models": models}

    def once(self, name: str, find: Callable[[], Any]) -> Any:
        """Return what was found under this name, now or by an earlier run."""
        if name not in self._found:
            print(f"{name} ...", file=sys.stderr, flush=True)
            self._found[name] = find()
            write_file(self._path, json.dumps(self._found, indent=1) + "\n")
        return self._found[name]


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path), help="Dev manifests.")
@click.option(
    "--commands", type=click.Path(exists=True, path_type=Path), help="What scripts/grammars/clips.py made."
)
@click.option("--every", type=click.IntRange(min=1), default=1, show_default=True, metavar="N")
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/tiny_en_tune"), show_default=True)
@click.option("--name", default="tiny-en", show_default=True)
@click.option("--models", type=click.Path(path_type=Path), default=EMBEDDED_MODELS, show_default=True)
@click.option("--no-card", is_flag=True, help="Tune and measure only.")
def main(
    data: Path, commands: Path | None, every: int, work: Path, name: str, models: Path, no_card: bool
) -> None:
    """Tune the bundle of NAME, measure it, and write the card."""
    restart_with_threads(1)
    home = models / name
    bundle = Bundle.load(home / "bundle")
    # With its time: the same weights, embedded again, are untuned.
    made = (home / "bundle" / "model.onnx").stat().st_mtime_ns
    key = [*(artifact.sha256[:16] for artifact in bundle.info.artifacts), f"{made} every {every}"]
    work.mkdir(parents=True, exist_ok=True)
    results = Results(work / "results.json", " ".join(key))
    rows = {key: read_rows(data / f"{key}.jsonl") for key in SETS}
    sets = {
        key: write_rows(work / f"{key}.jsonl", found[::every] if len(found) > SMALL else found)
        for key, found in rows.items()
    }
    tuning = [row for key, (first, step) in TUNING.items() for row in rows[key][first::step]]
    write_rows(work / "tuning.jsonl", tuning)
    noise = read_rows(data / "noise.jsonl")[::every]
    other = [row for path in list(sets.values())[1:] for row in read_rows(path)]
    write_rows(work / "other.jsonl", other + noise)
    tune(results, home / "bundle", sets, commands, work)
    measured = measure(results, home / "bundle", sets)
    streams = measure_streams(results, home, sets, work)
    if no_card:
        return
    heard = {row["audio_filepath"] for path in sets.values() for row in read_rows(path)}
    n_shared = sum(row["audio_filepath"] in heard for row in tuning)
    facts = describe(Bundle.load(home / "bundle"), home, sets, rows)
    tables = {**error_tables(measured, streams, sets), "stream_costs": cost_table(streams)}
    card = fill_card((HERE / "card.md").read_text("utf-8"), {**facts, **tables, "tuning": f"{n_shared}"})
    write_file(home / "README.md", card)


def read_rows(manifest: Path) -> list[Row]:
    """Read the rows of a manifest; paths become absolute."""
    if not manifest.is_file():
        raise click.UsageError(f"there is no {manifest}; --data is the folder of {', '.join(SETS)}")
    rows = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    root = manifest.resolve().parent
    return [{**row, "audio_filepath": str(root / row["audio_filepath"])} for row in rows]


def write_rows(path: Path, rows: list[Row]) -> Path:
    """Write rows as a manifest."""
    write_file(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def edge_asr(*arguments: str | Path, may_fail: bool = False) -> Any:
    """Run a command in a process of its own; return its JSON, or None if a gate failed and may."""
    command = [sys.executable, "-m", "edge_asr", *map(str, arguments), "--threads", "1", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode == GATE_FAILED and may_fail:
        return None
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}; this command goes on from here")
    return json.loads(done.stdout.splitlines()[-1])


def tune(results: Results, bundle: Path, sets: Mapping[str, Path], commands: Path | None, work: Path) -> None:
    """Find language model weights, thresholds of grammars and tables of confidence, into the bundle."""
    if Bundle.load(bundle, check_hashes=False).info.language_model is not None:
        results.once("lm tune", partial(edge_asr, "lm", "tune", work / "tuning.jsonl", "-m", bundle))
    if commands is not None:
        grammar, said = commands / "robot40.txt", commands / "robot40.jsonl"
        for mode in ((), ("--spot",)):
            arguments = (
                grammar,
                "--commands",
                said,
                "--other",
                work / "other.jsonl",
                "-m",
                bundle,
                "--save",
                *mode,
            )
            find = partial(edge_asr, "grammar", "tune", *arguments, may_fail=True)
            results.once(f"grammar tune{' --spot' if mode else ''}", find)
    for precision in PRECISIONS:
        for decoder in ("greedy", "beam"):
            options = (*sets.values(), "-m", bundle, "--precision", precision, "--decoder", decoder)
            find = partial(edge_asr, "evaluate", *options, "--calibrate-confidence", may_fail=True)
            results.once(f"confidence {precision} {decoder}", find)


def measure(results: Results, bundle: Path, sets: Mapping[str, Path]) -> dict[str, Row]:
    """Offline error rates of each set: both precisions with greedy search, INT8 with the language model."""
    return {
        f"{key} {precision} {decoder}": results.once(
            f"offline {key} {precision} {decoder}",
            partial(edge_asr, "evaluate", path, "-m", bundle, "--precision", precision, "--decoder", decoder),
        )
        for key, path in sets.items()
        for precision, decoder in (("fp32", "greedy"), ("int8", "greedy"), ("int8", "beam"))
    }


def measure_streams(results: Results, home: Path, sets: Mapping[str, Path], work: Path) -> dict[str, Row]:
    """Error rates and cost of streams: float32 at each chunk, from exports of their own, and what ships."""
    bundles = {}
    for chunk_ms in CHUNKS_MS:
        folder = work / f"stream{chunk_ms}"
        results.once(f"export {chunk_ms} ms", partial(export_stream, home, folder, chunk_ms, sets))
        bundles[f"fp32 {chunk_ms}"] = folder
    shipped = Bundle.load(home / "bundle", check_hashes=False).info.streaming
    if shipped is not None:
        chunk_ms = round(shipped.geometry.chunk_frames * shipped.geometry.frame_ms)
        bundles |= {f"{a.precision} {chunk_ms}": home / "bundle" for a in shipped.artifacts}
    streams = {}
    for key, bundle in bundles.items():
        precision = key.split()[0]
        streams[key] = {**results.once(f"cost of {key} ms", partial(measure_cost, bundle, precision))}
        for one, path in sets.items():
            find = partial(measure_stream, bundle, precision, path)
            streams[key][one] = results.once(f"stream {key} ms {one}", find)
    return streams


def export_stream(home: Path, folder: Path, chunk_ms: int, sets: Mapping[str, Path]) -> str:
    """Export the same weights with another chunk, float32, proven on AN4."""
    shutil.rmtree(folder, ignore_errors=True)
    export_bundle(
        home / "checkpoint",
        folder,
        streaming=StreamingOptions(chunk_ms=chunk_ms),
        weights="fp16",
        clips=[read_rows(sets["an4_dev"])[0]["audio_filepath"]],
        plan=CasePlan(random_lengths=1, max_random_s=3.0, max_batch=2),
    )
    return str(folder)


def measure_stream(folder: Path, precision: str, manifest: Path) -> Row:
    """Error rates of a streaming graph, with greedy search and the whole of each clip."""
    bundle = Bundle.load(folder, check_hashes=False)
    model = StreamingModel.load(bundle, precision=precision, num_threads=1)
    utterances = read_manifest(manifest).utterances
    texts = []
    for utterance in utterances:
        waveform = read_audio(utterance.audio_path, bundle.info.features.sample_rate)
        log_probs = stream_log_probs(model, waveform, bundle.info.features)
        ids = greedy_decode(log_probs, bundle.vocabulary.blank_id).ids.tolist()
        texts.append(bundle.vocabulary.decode(ids))
    rates = compute_error_rates([utterance.text for utterance in utterances], texts)
    return {"wer": rates.wer, "cer": rates.cer}


def measure_cost(folder: Path, precision: str) -> Row:
    """What a step takes, as a share of what offline takes for as much sound (scripts/bench_stream.py)."""
    program = HERE.parents[1] / "bench_stream.py"
    done = subprocess.run([sys.executable, program, folder], stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, GATE_FAILED):
        sys.exit(f"{program} {folder}: exit code {done.returncode}; this command goes on from here")
    found: Row = json.loads(done.stdout.splitlines()[-1])["result"][precision]
    return found


def describe(
    bundle: Bundle, home: Path, sets: Mapping[str, Path], rows: Mapping[str, list[Row]]
) -> dict[str, str]:
    """Facts of the card that files know."""
    info = bundle.info
    model = json.loads((home / "checkpoint" / "config.json").read_text("utf-8"))["model"]
    stream = info.streaming
    clips = {key: len(read_rows(path)) for key, path in sets.items()}
    return {
        "parameters": f"{info.n_parameters / 1e6:.2f} M",
        "blocks": str(model["n_layers"]),
        "width": str(model["d_model"]),
        "heads": str(model["n_heads"]),
        "kernel": str(model["conv_kernel_size"]),
        "subsampling": f"x{info.subsampling_factor}",
        "frame_ms": f"{1000 * info.output_frames.factor * info.features.hop_length / 16000:g}",
        "tokens": f"{info.vocabulary_size - 1}",
        "stream": "the bundle is offline"
        if stream is None
        else f"the bundle streams in {' and '.join(NAMES[a.precision] for a in stream.artifacts)}, chunks of "
        f"{stream.geometry.chunk_frames * stream.geometry.frame_ms:g} ms",
        "clips": ", ".join(f"{n} of {len(rows[key])} of {SETS[key]}" for key, n in clips.items()),
    }


def percent(row: Mapping[str, Any]) -> str:
    """WER and CER."""
    return f"{100 * row['wer']:.1f} %, {100 * row['cer']:.1f} %"


def error_tables(
    measured: Mapping[str, Row], streams: Mapping[str, Row], sets: Mapping[str, Path]
) -> dict[str, str]:
    """Tables of error rates: by precision, with the language model, and of streams."""
    clips = {key: str(len(read_rows(path))) for key, path in sets.items()}
    offline = markdown_table(
        ("set", "clips", "WER, CER float32", "WER, CER INT8", "WER INT8, beam and language model"),
        [
            (
                SETS[key],
                n,
                percent(measured[f"{key} fp32 greedy"]),
                percent(measured[f"{key} int8 greedy"]),
                f"{100 * measured[f'{key} int8 beam']['wer']:.1f} %",
            )
            for key, n in clips.items()
        ],
    )
    streamed = markdown_table(
        ("set", *(stream_name(key) for key in streams)),
        [(SETS[key], *(percent(found[key]) for found in streams.values())) for key in sets],
    )
    return {"offline": "\n".join(offline), "streams": "\n".join(streamed)}


def stream_name(key: str) -> str:
    """A precision and a chunk, for people."""
    precision, chunk_ms = key.split()
    return f"{chunk_ms} ms, {NAMES[precision]}"


def cost_table(streams: Mapping[str, Row]) -> str:
    """WER over all sets that are not AN4, against latency and compute."""
    rows = []
    for key, found in streams.items():
        chunk_ms = key.split()[1]
        free = [found[one]["wer"] for one in SETS if one != "an4_dev"]
        rates = (found["an4_dev"]["wer"], sum(free) / len(free))
        wers = [f"{100 * rate:.1f} %" for rate in rates]
        rows.append((stream_name(key), *wers, f"{chunk_ms} ms", f"{found['ratio']:.2f}"))
    columns = ("stream", "WER AN4", "WER free speech", "new words each", "compute, offline = 1")
    return "\n".join(markdown_table(columns, rows))


def fill_card(template: str, values: Mapping[str, str]) -> str:
    """Put values into the card; one that is missing, or that nothing needs, is an error."""
    unused = [name for name in values if f"${name}" not in template and f"${{{name}}}" not in template]
    if unused:
        raise ValueError(f"card.md has no place for {', '.join(unused)}")
    return Template(template).substitute(values)


if __name__ == "__main__":
    main()
