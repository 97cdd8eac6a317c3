"""Which decoder a recognizer gets, from Python and from options, and what it hears with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import edge_asr
from edge_asr.bundle.folder import EMBEDDED_MODELS, Bundle
from edge_asr.bundle.writer import attach_language_model
from edge_asr.errors import ConfigError, LanguageModelError, VocabularyError
from edge_asr.runtime.decoding.beam import SKIP_BLANK, BeamDecoder
from edge_asr.runtime.decoding.choice import BeamFactory, DecoderOptions, attention_decoder, beam_decoder
from edge_asr.runtime.decoding.decoder import DecoderFactory
from edge_asr.runtime.decoding.grammar.recognition import GrammarDecoder
from edge_asr.runtime.decoding.hotwords import Hotword
from edge_asr.runtime.decoding.lm.kneser_ney import build_ngrams
from edge_asr.runtime.decoding.lm.model_file import LanguageModel, write_model
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.vocabulary import Vocabulary

SAMPLE = Path(edge_asr.__file__).parent / "models/samples/robot_commands.flac"
LETTERS = Vocabulary.from_characters("abc ")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text("a b\nabc:2\n", encoding="utf-8")
    return path


def test_the_beam_has_the_size_that_was_asked_for() -> None:
    decoder = beam_decoder(beam_size=3)(LETTERS)
    assert isinstance(decoder, BeamDecoder)
    assert (decoder.beam_size, decoder.blank_id) == (3, LETTERS.blank_id)
    with pytest.raises(ConfigError, match="beam_size is 0; give 1 or more"):
        beam_decoder(beam_size=0)


def test_hotwords_are_a_file_or_a_list(words: Path) -> None:
    for hotwords in (words, str(words), ["a b", Hotword("abc", 2.0)]):
        assert isinstance(beam_decoder(hotwords=hotwords)(LETTERS), BeamDecoder)
    with pytest.raises(ConfigError, match="there are no hotwords"):
        beam_decoder(hotwords=[])(LETTERS)
    with pytest.raises(VocabularyError, match="'xyz'"):
        beam_decoder(hotwords=["xyz"])(LETTERS)


def test_options_mean_a_decoder(words: Path) -> None:
    assert DecoderOptions().factory() is None
    assert DecoderOptions(decoder="greedy").factory() is None
    for options, size in (
        (DecoderOptions(decoder="beam"), 8),
        (DecoderOptions(beam_size=2), 2),
        (DecoderOptions(hotwords=words), 8),
    ):
        factory = options.factory()
        assert factory is not None
        decoder = factory(LETTERS)
        assert isinstance(decoder, BeamDecoder)
        assert decoder.beam_size == size
        assert DecoderOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options


def test_options_in_words(words: Path) -> None:
    assert DecoderOptions().describe() == "greedy"
    assert DecoderOptions(decoder="beam").describe() == "beam"
    assert DecoderOptions(hotwords=words, beam_size=4).describe() == "beam 4, hotwords words.txt"
    assert DecoderOptions(lm=Path("x/en.bin")).describe() == "beam, lm en.bin"
    assert DecoderOptions(decoder="beam", lm=Path("none")).describe() == "beam, lm none"
    assert DecoderOptions(lm=Path("none")).is_greedy
    weighted = DecoderOptions(decoder="rescoring", ctc_weight=0.5, reverse_weight=0.3)
    assert weighted.describe() == "rescoring, ctc 0.5, reverse 0.3"
    assert not weighted.is_greedy
    assert DecoderOptions.from_dict(json.loads(json.dumps(weighted.to_dict()))) == weighted
    with pytest.raises(ConfigError, match="the decoder attention needs a bundle"):
        attention_decoder()(LETTERS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "best"}, "decoder is 'best'; it must be greedy or beam"),
        ({"beam_size": 0}, "beam_size is 0"),
        ({"decoder": "greedy", "hotwords": Path("w.txt")}, "no use for hotwords; choose the decoder beam"),
        ({"decoder": "greedy", "beam_size": 4}, "no use for a beam size"),
        ({"decoder": "greedy", "lm": Path("lm.bin")}, "no use for a language model; choose the decoder beam"),
        ({"grammar": Path("g.txt"), "lm": Path("lm.bin")}, "a grammar has a search of its own"),
        ({"grammar": Path("g.txt"), "beam_size": 4}, "a grammar has a search of its own"),
        ({"grammar_threshold": 0.5}, "needs a grammar"),
        ({"grammar": Path("g.txt"), "decoder": "rescoring"}, "a grammar has a search of its own"),
        ({"ctc_weight": 0.3}, "belongs to the decoder rescoring or attention; choose it, or leave"),
        ({"decoder": "attention", "reverse_weight": 0.3}, "belongs to the decoder rescoring"),
        ({"decoder": "rescoring", "ctc_weight": 1.2}, r"ctc_weight is 1\.2; it is a share, give 0 to 1"),
        ({"decoder": "attention", "hotwords": Path("w.txt")}, "attention has no use for hotwords"),
        ({"decoder": "attention", "lm": Path("lm.bin")}, "attention has no use for a language model"),
    ],
)
def test_options_that_contradict(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DecoderOptions(**options)  # type: ignore[arg-type]


def test_a_hotword_is_heard_in_real_speech() -> None:
    """The embedded sample says "start": who wants "starch" very much hears it; other words change nothing."""

    def hear(decoder: DecoderFactory | None) -> str:
        with Recognizer.load("tiny-en", num_threads=1, decoder=decoder) as recognizer:
            return recognizer.transcribe_file(SAMPLE).text

    plain = hear(None)
    assert "start" in plain.split()
    assert hear(beam_decoder(lm=None)) == hear(beam_decoder(hotwords=["zebra"], lm=None))
    assert "starch" in hear(beam_decoder(hotwords=[Hotword("starch", 6.0)])).split()


def test_a_language_model_is_a_file_or_the_bundles(tmp_path: Path, words: Path) -> None:
    path, other = tmp_path / "lm.bin", tmp_path / "other.bin"
    for file in (path, other):
        write_model(file, build_ngrams([["a", "b"]], 2))
    options = DecoderOptions(lm=path, hotwords=words)
    assert DecoderOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options
    none = DecoderOptions(decoder="beam", lm=Path("none"))
    assert DecoderOptions.from_dict(json.loads(json.dumps(none.to_dict()))) == none
    folder = tmp_path / "bundle"
    shutil.copytree(EMBEDDED_MODELS / "tiny-en/bundle", folder)
    attach_language_model(Bundle.load(folder), None)
    without = Bundle.load(folder, check_hashes=False)
    attach_language_model(without, other, {"alpha": 0.25, "beta": 3.0})
    bundle = Bundle.load(folder, check_hashes=False)
    for factory, n_plain, n_bundle in (
        (options.factory(), 2, 2),
        (none.factory(), 0, 0),
        (DecoderOptions(decoder="beam").factory(), 0, 1),
        (beam_decoder(lm=LanguageModel.load(path)), 1, 1),
        (beam_decoder(lm=str(path)), 1, 1),
        (beam_decoder(lm=None), 0, 0),
    ):
        assert isinstance(factory, BeamFactory)
        made = (
            (factory, n_plain),
            (factory.for_bundle(without), n_plain),
            (factory.for_bundle(bundle), n_bundle),
        )
        for one, n_scorers in made:
            decoder = one(LETTERS)
            assert isinstance(decoder, BeamDecoder)
            assert len(decoder._scorers) == n_scorers
            assert decoder.beam_size == (32 if n_scorers else 8)
    weights = beam_decoder().for_bundle(bundle)(LETTERS)._scorers[0]._weights  # type: ignore[attr-defined]
    assert (weights.alpha, weights.beta) == (0.25, 3.0)
    attach_language_model(bundle, other, {"alpha": 0.25, "gamma": 3.0})
    with pytest.raises(LanguageModelError, match=r"in bundle.json.*gamma"):
        beam_decoder().for_bundle(Bundle.load(folder, check_hashes=False))(LETTERS)
    path.write_bytes(b"")
    with pytest.raises(LanguageModelError, match="is no language model of edge-asr"):
        beam_decoder(lm=path)(LETTERS)


def test_skipped_frames_change_no_text_of_real_speech() -> None:
    found = {}
    for skip_blank in (None, SKIP_BLANK, 0.99):

        def make(vocabulary: Vocabulary, skip_blank: float | None = skip_blank) -> BeamDecoder:
            return BeamDecoder(vocabulary.blank_id, skip_blank=skip_blank)

        with Recognizer.load("tiny-en", num_threads=1, decoder=make) as recognizer:
            found[skip_blank] = recognizer.transcribe_file(SAMPLE).text
    assert len(set(found.values())) == 1


def test_a_grammar_is_a_decoder(tmp_path: Path) -> None:
    path = tmp_path / "g.txt"
    path.write_text("a [b] c", encoding="utf-8")
    options = DecoderOptions(grammar=path, grammar_threshold=0.5, grammar_mode="spot")
    assert DecoderOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options
    assert (options.describe(), options.is_greedy) == ("grammar g.txt", False)
    factory = options.factory()
    assert factory is not None
    decoder = factory(LETTERS)
    assert isinstance(decoder, GrammarDecoder)
    assert (decoder.threshold, decoder.mode) == (0.5, "spot")
