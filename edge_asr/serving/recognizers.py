"""The recognizers of the server: one model, with the decoder that a client asked for, in turns.

Making a decoder can take a while (a grammar is compiled, a language model read), so the last ones are kept.
What this file does not do: load the model (`Recognizer.load`), know sessions.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from edge_asr.errors import ConfigError
from edge_asr.runtime import Decoder, GrammarDecoder, Recognizer, StreamingDecoder, beam_decoder
from edge_asr.runtime import streaming_decoders as make_streaming_decoders
from edge_asr.runtime.decoding.choice import BUNDLE_LM, BeamFactory
from edge_asr.runtime.decoding.grammar.graph import compile_graph
from edge_asr.runtime.decoding.grammar.jsgf import HEADER, parse_jsgf
from edge_asr.runtime.decoding.grammar.template import parse_template
from edge_asr.runtime.decoding.lm.model_file import LanguageModel
from edge_asr.runtime.live.partials import PartialDecoder, WindowedDecoder
from edge_asr.runtime.onnxruntime_backend import count_usable_cores
from edge_asr.serving.options import DecodingOptions, hotword_from_text
from edge_asr.serving.turns import PURPOSES, Purpose, SharedBackend, Turns

_KEPT = 16
_MAX_GRAMMAR_ARCS = 20_000
_MOST_STREAMS = 64  # of which an engine records the steps; more take the steps of the largest number
_DEFAULT = DecodingOptions()


class Recognizers:
    """Gives recognizers that share one loaded model.

    Args:
        base: the loaded recognizer; its decoder is the one of clients that ask for nothing.
        observe: called after each run of the model with its purpose and seconds, waiting included.
        observe_step: called after each step of the streaming graph: `StepBatcher.observe`.

    Raises:
        BackendError: the streaming graph of the bundle cannot be loaded.
    """

    def __init__(
        self,
        base: Recognizer,
        observe: Callable[[Purpose, float], None],
        observe_step: Callable[[float, int], None],
    ) -> None:
        self.base = base
        self.n_places = max(1, count_usable_cores() // (base.backend.num_threads or 1))
        if base.backend.name != "cpu":
            self.n_places = 1
        self._turns = Turns(self.n_places)
        self._observe = observe
        self._is_streaming = make_streaming_decoders(base) is not None
        base.warm_up()
        if self._is_streaming:
            base.streaming_model().warm_up(_MOST_STREAMS)
            base.streaming_model().observe_steps(observe_step)
        self._lock = threading.Lock()
        self._kept: OrderedDict[DecodingOptions, Future[dict[Purpose, Recognizer]]] = OrderedDict()
        self._language_model: BeamFactory | None = None

    def get(self, options: DecodingOptions, purpose: Purpose) -> Recognizer:
        """Return a recognizer with the decoder of these options; it need not be closed.

        Raises:
            EdgeAsrError: the decoder cannot be made: a grammar, hotwords or a language model that the model
                cannot spell or the bundle does not have.
        """
        options = options.decoding
        with self._lock:
            made = self._kept.get(options)
            if is_mine := made is None:
                made = self._kept[options] = Future()
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(options)
        assert made is not None
        if is_mine:  # others that ask for the same wait for it
            try:
                decoder = self._make_decoder(options)
                made.set_result({purpose: self._with_decoder(decoder, purpose) for purpose in PURPOSES})
            except BaseException as error:  # noqa: BLE001 - raised below, and for those who wait
                made.set_exception(error)
                with self._lock:
                    self._kept.pop(options, None)
        return made.result()[purpose]

    def new_partial_decoder(self, options: DecodingOptions, window_s: float) -> PartialDecoder:
        """Return what follows an utterance in progress: on the streaming graph, if that is the cheaper way.

        Raises:
            EdgeAsrError: as `get`.
        """
        if self._is_streaming:
            base, decoder = self.base, self.get(options, "partial").new_decoder()
            return StreamingDecoder(base.streaming_model(), base.features, base.vocabulary, decoder)
        return WindowedDecoder(self.get(options, "partial").for_partials(), window_s)

    def _with_decoder(self, decoder: Decoder, purpose: Purpose) -> Recognizer:
        base = self.base
        return Recognizer(
            SharedBackend(base.backend, self._turns, purpose, self._observe),
            features=base.features,
            vocabulary=base.vocabulary,
            subsampling_factor=base.subsampling_factor,
            first_output_frames=base.output_frames.first,
            windows=base.windows,
            bundle=base.bundle,
            backend_reason=base.backend_reason,
            decoder=lambda _: decoder,
        )

    def _make_decoder(self, options: DecodingOptions) -> Decoder:
        vocabulary = self.base.vocabulary
        if options == _DEFAULT:
            return self.base.new_decoder()
        if options.grammar is not None:
            return self._grammar_decoder(options)
        hotwords = tuple(map(hotword_from_text, options.hotwords)) or None
        if options.language_model is False and hotwords is None:
            return beam_decoder(lm=None)(vocabulary)
        factory = beam_decoder(hotwords=hotwords, lm=None)
        if options.language_model is not False:
            with_model = self._with_language_model()
            if with_model.language_model is None and options.language_model:
                raise ConfigError("the bundle has no language model; leave language_model out")
            factory = replace(with_model, hotwords=hotwords)
        return factory(vocabulary)

    def _with_language_model(self) -> BeamFactory:
        """Return the factory of the bundle's language model, which is read once."""
        if self._language_model is None:
            factory = beam_decoder(lm=BUNDLE_LM)
            if self.base.bundle is not None:
                factory = factory.for_bundle(self.base.bundle)
            if isinstance(factory.language_model, Path):
                factory = replace(factory, language_model=LanguageModel.load(factory.language_model))
            self._language_model = factory
        return self._language_model

    def _grammar_decoder(self, options: DecodingOptions) -> Decoder:
        text, name = options.grammar or "", "the grammar"
        grammar = parse_jsgf(text, name) if text.startswith(HEADER) else parse_template(text, name)
        graph = compile_graph(grammar, self.base.vocabulary, max_arcs=_MAX_GRAMMAR_ARCS)
        known = None if self.base.bundle is None else self.base.bundle.info.grammar
        threshold = None if known is None else getattr(known, options.grammar_mode)
        return GrammarDecoder(graph, threshold=threshold, mode=options.grammar_mode)
