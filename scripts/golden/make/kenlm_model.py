"""tests/data/language_model: what KenLM makes of a text, and what its models cost.

pip install flashlight-text==0.0.7 (its wheel has KenLM's queries), and lmplz, built from the sdist of
kenlm==0.3.0 (cmake, boost): pip download --no-binary :all: --no-deps kenlm==0.3.0
cd scripts && python -m golden.make.kenlm_model PATH/TO/lmplz ../tests/data/language_model
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

SEED = 41
N_SENTENCES = 160
N_WORDS = 60
#: Options of lmplz by the name of the file.
MODELS = {"order3": ["-o", "3"], "order4_cut": ["-o", "4", "--prune", "0", "0", "1", "--discount_fallback"]}


def main() -> None:
    """Write text.txt, the models in ARPA text, and scores.json."""
    lmplz, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    dice = random.Random(SEED)
    words = sorted({"".join(dice.choices("abdegiklmnorst", k=dice.randint(2, 5))) for _ in range(N_WORDS)})
    weights = [1 / (rank + 2) for rank in range(len(words))]
    sentences = [dice.choices(words, weights, k=dice.randint(1, 9)) for _ in range(N_SENTENCES)]
    text = "".join(" ".join(sentence) + "\n" for sentence in sentences)
    (folder / "text.txt").write_text(text, encoding="utf-8")
    asked = [[*sentence[::-1], "unheard"][: 2 + index % 8] for index, sentence in enumerate(sentences[:40])]
    scores = {}
    for name, options in MODELS.items():
        path = folder / f"{name}.arpa"
        done = subprocess.run([lmplz, *options], input=text.encode(), capture_output=True, check=True)
        path.write_bytes(done.stdout)
        scores[name] = [score(path, words, sentence) for sentence in asked]
    result = {
        "flashlight-text": metadata.version("flashlight-text"),
        "lmplz": "0.3.0",
        "seed": SEED,
        "sentences": [" ".join(sentence) for sentence in asked],
        "scores": scores,
    }
    (folder / "scores.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def score(path: Path, words: list[str], sentence: list[str]) -> float:
    """Return the natural log of a sentence, its end included, as KenLM computes it."""
    dictionary = import_module("flashlight.lib.text.dictionary").Dictionary()
    for word in [*words, "<unk>"]:
        dictionary.add_entry(word)
    model = import_module("flashlight.lib.text.decoder.kenlm").KenLM(str(path), dictionary)
    state, total = model.start(False), 0.0
    for word in sentence:
        index = dictionary.get_index(word if word in words else "<unk>")
        state, value = model.score(state, index)
        total += value
    return (total + model.finish(state)[1]) * math.log(10)


if __name__ == "__main__":
    main()
