#!/usr/bin/env python3
"""Lets a peer hear clips, and keeps what it heard: its own Python, no edge-asr, nothing that depends on our
model.

    python scripts/grammars/hear.py whisper WEIGHTS OUT.jsonl MANIFEST[::STEP]...
    python scripts/grammars/hear.py pocketsphinx GRAMMAR.txt OUT.jsonl MANIFEST[::STEP]...

whisper takes faster-whisper and a folder of CTranslate2 weights, with the defaults of faster-whisper, one
thread, INT8. pocketsphinx takes the package of that name with its own model, and a grammar of one phrase a
line as JSGF; its score is that of the phrase less that of a loop of all phones, a frame. A row of OUT has the
file's path, what was heard, and the score; clips that OUT has already are not heard again.
What this file does not do: accept or reject (bench_grammar.py).
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Hear = Callable[[Path], tuple[str, float]]


def main() -> None:
    """Hear every clip once."""
    peer, what, output, *manifests = sys.argv[1:]
    path = Path(output)
    known = {json.loads(line)["path"] for line in path.read_text().splitlines()} if path.exists() else set()
    hear = {"whisper": load_whisper, "pocketsphinx": load_pocketsphinx}[peer](Path(what))
    with path.open("a") as file:
        for manifest in manifests:
            for clip in clips_of(manifest):
                if str(clip) not in known:
                    known.add(str(clip))
                    text, score = hear(clip)
                    row = {"path": str(clip), "text": text, "score": round(score, 7)}
                    file.write(json.dumps(row) + "\n")
                    file.flush()


def clips_of(manifest: str) -> list[Path]:
    """Return the recordings of a manifest; with ::STEP at its end every STEP-th."""
    name, _, step = manifest.partition("::")
    path = Path(name).resolve()
    rows = [json.loads(line) for line in path.read_text().splitlines()][:: int(step or 1)]
    return [(path.parent / row["audio_filepath"]).resolve() for row in rows]


def load_whisper(weights: Path) -> Hear:
    """Return what hears with faster-whisper; the score is the mean log-probability of the tokens."""
    from faster_whisper import WhisperModel

    model = WhisperModel(str(weights), device="cpu", compute_type="int8", cpu_threads=1)

    def hear(clip: Path) -> tuple[str, float]:
        segments: list[Any] = list(model.transcribe(str(clip), language="en")[0])
        text = " ".join(segment.text.strip() for segment in segments)
        return text, min((segment.avg_logprob for segment in segments), default=0.0)

    return hear


def load_pocketsphinx(grammar: Path) -> Hear:
    """Return what hears with PocketSphinx and a grammar."""
    import soundfile
    from pocketsphinx import Config, Decoder, get_model_path

    decoder = Decoder(
        Config(hmm=get_model_path("en-us/en-us"), dict=get_model_path("en-us/cmudict-en-us.dict"))
    )
    phrases = [line for line in grammar.read_text().splitlines() if line]
    missing = sorted({word for phrase in phrases for word in phrase.split() if not decoder.lookup_word(word)})
    if missing:
        raise SystemExit(f"the dictionary of PocketSphinx lacks {', '.join(missing)}; change {grammar}")
    decoder.add_jsgf_string(
        "grammar", f"#JSGF V1.0; grammar g; public <phrase> = {' | '.join(dict.fromkeys(phrases))};"
    )
    decoder.add_allphone_file("phones", None)

    def search(name: str, sound: bytes) -> tuple[str, float]:
        decoder.activate_search(name)
        decoder.start_utt()
        decoder.process_raw(sound, full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return ("", 0.0) if found is None else (found.hypstr, found.best_score / max(1, decoder.n_frames()))

    def hear(clip: Path) -> tuple[str, float]:
        sound = soundfile.read(clip, dtype="int16")[0].tobytes()
        text, score = search("grammar", sound)
        return text, score - search("phones", sound)[1]

    return hear


if __name__ == "__main__":
    main()
