"""Every key of the training YAML, with its default and meaning.

The docstrings are the documentation: `edge_asr.training.config_io` prints them as comments of
the default YAML and reads a YAML back. This file holds no torch and reads no files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edge_asr.errors import ConfigError
from edge_asr.training.decoder_config import DecoderSection

_NOISE_KINDS = ("white", "pink", "babble", "recorded")
_CODECS = ("mu_law", "gsm", "mp3", "vorbis", "opus")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _check_range(name: str, value: tuple[float, float], *, low: float | None = None) -> None:
    _check(len(value) == 2 and value[0] <= value[1], f"{name} must be [lowest, highest], got {list(value)}")
    _check(low is None or value[0] >= low, f"{name} must not go below {low}, got {list(value)}")


def _check_probability(name: str, value: float) -> None:
    _check(0.0 <= value <= 1.0, f"{name} must be a probability from 0 to 1, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """One manifest or corpus folder.

    path: JSON Lines manifest, LJSpeech folder or LibriSpeech folder; relative to the YAML file.
    kind: auto, jsonl, ljspeech or librispeech.
    name: label in reports and metrics columns; the file name when null.
    weight: how often each utterance is seen per epoch; 2.5 is twice or three times at random.
    """

    path: str
    kind: str = "auto"
    name: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check(self.weight > 0, f"source weight must be > 0, got {self.weight} for {self.path}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """The data to train on, and how to batch it.

    train: list of sources; all are mixed.
    dev: list of sources for evaluation; no source may be empty.
    test: list of sources that run/best is evaluated on once, at the end.
    text_normalization: none, or basic (lower case, letters, digits, apostrophes, single spaces).
    min_clip_s: shorter clips are bad rows, seconds.
    max_clip_s: longer clips are bad rows, seconds.
    cache_audio: decode every clip once, to one int16 file per source that is read through memory.
    cache_dir: where those files live; RUN/cache when null. May be shared between runs.
    max_batch_s: most seconds of audio, padding included, in one batch of one process.
    max_batch_utterances: most utterances in one batch of one process.
    n_buckets: duration buckets of lhotse's DynamicBucketingSampler; at least 2 are used.
    n_workers: background processes that prepare batches; 0 prepares them in the training process.
    prefetch_batches: batches each worker prepares ahead.
    n_decode_threads: threads that decode audio at the start.
    """

    train: tuple[SourceConfig, ...] = ()
    dev: tuple[SourceConfig, ...] = ()
    test: tuple[SourceConfig, ...] = ()
    text_normalization: str = "basic"
    min_clip_s: float = 0.2
    max_clip_s: float = 20.0
    cache_audio: bool = True
    cache_dir: str | None = None
    max_batch_s: float = 120.0
    max_batch_utterances: int = 64
    n_buckets: int = 12
    n_workers: int = 1
    prefetch_batches: int = 4
    n_decode_threads: int = 2

    def __post_init__(self) -> None:
        _check(
            0 <= self.min_clip_s < self.max_clip_s,
            f"min_clip_s must be below max_clip_s, got {self.min_clip_s} and {self.max_clip_s}",
        )
        _check(self.max_batch_s > 0, f"max_batch_s must be > 0, got {self.max_batch_s}")
        for name in ("max_batch_utterances", "n_buckets", "prefetch_batches", "n_decode_threads"):
            _check(getattr(self, name) >= 1, f"{name} must be >= 1, got {getattr(self, name)}")
        _check(self.n_workers >= 0, f"n_workers must be >= 0, got {self.n_workers}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """Waveform augmentation, in this order: speed, joining, room, gain, noise, clipping, codec, vocal tract.

    enabled: false trains on the clips as they are.
    speeds: one factor is drawn for each clip (soxr; 1.1 is faster and higher).
    concat_prob: probability that a clip is joined with others until about concat_max_s.
    concat_max_s: longest joined waveform, seconds.
    concat_gap_s: [lowest, highest] near-silence between joined clips, seconds.
    pad_prob: probability of near-silence before, and again after, the waveform.
    pad_max_s: longest such padding, seconds.
    offset_max_s: every waveform begins with up to this much near-silence, seconds, so that frames fall
        on all places; 0.04 to 0.08 covers one encoder frame.
    gain_db: [lowest, highest] change of level, dB.
    noise_prob: probability of additive noise.
    noise_snr_db: [lowest, highest] signal-to-noise ratio, dB.
    noise_kinds: drawn from white, pink, babble (3 to 6 other training clips at once) and recorded.
    noise_manifest: JSON Lines manifest of recorded noises without words, for the kind recorded.
    reverb_prob: probability of reverberation by a random exponentially decaying impulse response.
    reverb_rt60_s: [lowest, highest] reverberation time, seconds.
    room_prob: probability of a simulated room, microphone and talker in it (image method).
    n_rooms: rooms that are simulated at the start, to be drawn from.
    room_rt60_s: [lowest, highest] reverberation time of the rooms, seconds.
    room_distance_m: [lowest, highest] distance from talker to microphone, meters; 3 and more is far field.
    clip_prob: probability of overdriving, which clips the loudest samples.
    clip_fraction: [lowest, highest] fraction of the samples that is clipped.
    codec_prob: probability of a codec.
    codecs: drawn from mu_law, gsm (both at 8 kHz, as telephones), mp3, vorbis and opus.
    vtlp_range: [lowest, highest] factor of the frequency axis, as if the vocal tract were shorter or
        longer (Jaitly and Hinton 2013); [1.0, 1.0] leaves it.
    """

    enabled: bool = True
    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)
    concat_prob: float = 0.1
    concat_max_s: float = 15.0
    concat_gap_s: tuple[float, float] = (0.0, 0.5)
    pad_prob: float = 0.3
    pad_max_s: float = 0.5
    offset_max_s: float = 0.0
    gain_db: tuple[float, float] = (-12.0, 6.0)
    noise_prob: float = 0.4
    noise_snr_db: tuple[float, float] = (5.0, 30.0)
    noise_kinds: tuple[str, ...] = ("white", "pink", "babble")
    noise_manifest: str | None = None
    reverb_prob: float = 0.15
    reverb_rt60_s: tuple[float, float] = (0.1, 0.5)
    room_prob: float = 0.0
    n_rooms: int = 64
    room_rt60_s: tuple[float, float] = (0.15, 0.7)
    room_distance_m: tuple[float, float] = (0.3, 4.0)
    clip_prob: float = 0.0
    clip_fraction: tuple[float, float] = (0.0005, 0.02)
    codec_prob: float = 0.0
    codecs: tuple[str, ...] = ("mu_law", "gsm", "mp3", "vorbis")
    vtlp_range: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        _check(
            len(self.speeds) > 0 and all(0.5 <= speed <= 2.0 for speed in self.speeds),
            f"speeds must be factors from 0.5 to 2, got {list(self.speeds)}",
        )
        for name in ("concat", "pad", "noise", "reverb", "room", "clip", "codec"):
            _check_probability(f"{name}_prob", getattr(self, f"{name}_prob"))
        _check_range("gain_db", self.gain_db)
        _check_range("noise_snr_db", self.noise_snr_db)
        _check_range("concat_gap_s", self.concat_gap_s, low=0.0)
        _check_range("reverb_rt60_s", self.reverb_rt60_s, low=0.01)
        _check_range("room_rt60_s", self.room_rt60_s, low=0.01)
        _check_range("room_distance_m", self.room_distance_m, low=0.05)
        _check_range("clip_fraction", self.clip_fraction, low=0.0)
        _check(self.clip_fraction[1] < 1, f"clip_fraction must be below 1, got {list(self.clip_fraction)}")
        _check_range("vtlp_range", self.vtlp_range, low=0.5)
        _check(self.vtlp_range[1] <= 2, f"vtlp_range must not exceed 2, got {list(self.vtlp_range)}")
        _check(self.n_rooms >= 1, f"n_rooms must be >= 1, got {self.n_rooms}")
        _check(self.concat_max_s >= 0, f"concat_max_s must be >= 0, got {self.concat_max_s}")
        _check(self.pad_max_s >= 0, f"pad_max_s must be >= 0, got {self.pad_max_s}")
        _check(self.offset_max_s >= 0, f"offset_max_s must be >= 0, got {self.offset_max_s}")
        unknown = set(self.noise_kinds) - set(_NOISE_KINDS)
        _check(not unknown, f"unknown noise kind {sorted(unknown)}; use {', '.join(_NOISE_KINDS)}")
        _check(bool(self.noise_kinds), "noise_kinds is empty; set noise_prob: 0 for no noise")
        _check(
            "recorded" not in self.noise_kinds or self.noise_manifest is not None,
            "noise kind recorded needs noise_manifest",
        )
        unknown = set(self.codecs) - set(_CODECS)
        _check(not unknown, f"unknown codec {sorted(unknown)}; use {', '.join(_CODECS)}")
        _check(bool(self.codecs), "codecs is empty; set codec_prob: 0 for none")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecAugmentConfig:
    """SpecAugment (Park et al. 2019) on the features; masked cells get the training mean.

    n_freq_masks: frequency masks per utterance.
    max_freq_bins: widest frequency mask, mel bins.
    n_time_masks: time masks per utterance.
    max_time_frames: longest time mask, feature frames.
    max_time_fraction: longest time mask as a fraction of the utterance (SpecAugment's p).
    """

    n_freq_masks: int = 2
    max_freq_bins: int = 20
    n_time_masks: int = 2
    max_time_frames: int = 40
    max_time_fraction: float = 0.1

    def __post_init__(self) -> None:
        for name in ("n_freq_masks", "max_freq_bins", "n_time_masks", "max_time_frames"):
            _check(getattr(self, name) >= 0, f"{name} must be >= 0, got {getattr(self, name)}")
        _check_probability("max_time_fraction", self.max_time_fraction)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """Text to tokens. Ignored with init_from, which brings its own unless override_init is set.

    kind: char, or sentencepiece (BPE trained on the weighted training texts).
    characters: the alphabet for char, space included; taken from the training texts when null.
    vocab_size: sentencepiece pieces, the blank not counted.
    extra_text: file of one sentence a line, added to what SentencePiece is trained on.
    letters_as_words: make every single letter as a word one piece, for spelling.
    """

    kind: str = "sentencepiece"
    characters: str | None = None
    vocab_size: int = 256
    extra_text: str | None = None
    letters_as_words: bool = True

    def __post_init__(self) -> None:
        _check(
            self.kind in ("char", "sentencepiece"),
            f"tokenizer kind must be char or sentencepiece, got {self.kind!r}",
        )
        _check(self.vocab_size >= 2, f"vocab_size must be >= 2, got {self.vocab_size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingConfig:
    """Dynamic-chunk training: one attention geometry is drawn for each batch.

    full_context_prob: probability of full context; 1.0 trains an offline model.
    chunk_frames: [lowest, highest] chunk, encoder frames, drawn otherwise.
    unlimited_left_prob: with a chunk, probability of unlimited left context.
    left_chunks: [lowest, highest] chunks of left context, drawn otherwise.
    """

    full_context_prob: float = 0.5
    chunk_frames: tuple[int, int] = (4, 24)
    unlimited_left_prob: float = 0.5
    left_chunks: tuple[int, int] = (1, 8)

    def __post_init__(self) -> None:
        _check_probability("full_context_prob", self.full_context_prob)
        _check_probability("unlimited_left_prob", self.unlimited_left_prob)
        _check_range("chunk_frames", self.chunk_frames, low=1)
        _check_range("left_chunks", self.left_chunks, low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """The optimizer, its schedule, and when to stop.

    optimizer: adamw; or muon for the matrices of the encoder's layers and AdamW for all else.
    lr: peak learning rate, the same for both.
    betas: AdamW's two decay rates.
    eps: AdamW's epsilon.
    weight_decay: applied to weights of two or more dimensions only.
    warmup_steps: linear rise from 0 to lr.
    schedule: after warm-up: constant, cosine or linear, down to min_lr_ratio at the end.
    decay_over: steps (up to max_steps) or minutes (up to max_minutes, not exactly repeatable).
    min_lr_ratio: final learning rate as a fraction of lr.
    max_steps: stop after this many optimizer steps; null for no limit.
    max_minutes: stop cleanly after this much wall clock, resumed time included; null for no limit.
    accumulate: micro-batches per optimizer step.
    clip_norm: largest gradient norm; 0 for no clipping.
    loss_normalization: the global batch's CTC sum is divided by its tokens or its utterances.
    intermediate_weight: weight of the mean intermediate CTC loss; the final one gets the rest.
    ema_decay: decay of an exponential moving average of the weights, which is then what is
        evaluated and saved; 0 for none.
    flat_start_steps: steps of cross-entropy on an even alignment before CTC begins; a few hundred
        shorten the time in which a fresh model says nothing but blank.
    flat_start_alignments: folder of SOURCE.jsonl that say when each character is said (see
        `edge_asr.training.alignment`), for the flat start; clips without a row are spread evenly.
    """

    optimizer: str = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.01
    warmup_steps: int = 500
    schedule: str = "cosine"
    decay_over: str = "steps"
    min_lr_ratio: float = 0.01
    max_steps: int | None = 10000
    max_minutes: float | None = None
    accumulate: int = 1
    clip_norm: float = 1.0
    loss_normalization: str = "tokens"
    intermediate_weight: float = 0.3
    ema_decay: float = 0.999
    flat_start_steps: int = 0
    flat_start_alignments: str | None = None

    def __post_init__(self) -> None:
        _check(
            self.optimizer in ("adamw", "muon"), f"optimizer must be adamw or muon, got {self.optimizer!r}"
        )
        _check(self.lr > 0, f"lr must be > 0, got {self.lr}")
        _check(len(self.betas) == 2, f"betas must be two numbers, got {list(self.betas)}")
        _check(self.warmup_steps >= 0, f"warmup_steps must be >= 0, got {self.warmup_steps}")
        _check(
            self.schedule in ("constant", "cosine", "linear"),
            f"schedule must be constant, cosine or linear, got {self.schedule!r}",
        )
        _check(
            self.decay_over in ("steps", "minutes"),
            f"decay_over must be steps or minutes, got {self.decay_over!r}",
        )
        needs = "max_steps" if self.decay_over == "steps" else "max_minutes"
        _check(
            self.schedule == "constant" or getattr(self, needs) is not None,
            f"schedule {self.schedule} over {self.decay_over} needs {needs}",
        )
        _check(
            self.max_steps is not None or self.max_minutes is not None,
            "set max_steps or max_minutes, or training never ends",
        )
        _check(self.flat_start_steps >= 0, f"flat_start_steps must be >= 0, got {self.flat_start_steps}")
        _check(self.accumulate >= 1, f"accumulate must be >= 1, got {self.accumulate}")
        _check(self.clip_norm >= 0, f"clip_norm must be >= 0, got {self.clip_norm}")
        _check(
            self.loss_normalization in ("tokens", "utterances"),
            f"loss_normalization must be tokens or utterances, got {self.loss_normalization!r}",
        )
        _check_probability("intermediate_weight", self.intermediate_weight)
        _check(0 <= self.ema_decay < 1, f"ema_decay must be from 0 to below 1, got {self.ema_decay}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationConfig:
    """A teacher's posteriors as targets for every frame, beside CTC.

    posteriors: folder of SOURCE.npz in the student's vocabulary (see `edge_asr.training.distillation`);
        clips without any learn from their text alone.
    weight: weight of the Kullback-Leibler divergence per frame, beside the CTC loss.
    temperature: softens teacher and student alike; 1 for the posteriors as they are.
    """

    posteriors: str | None = None
    weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check(self.weight >= 0, f"weight must be >= 0, got {self.weight}")
        _check(self.temperature > 0, f"temperature must be > 0, got {self.temperature}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Device, precision, logging, evaluation and saving. 0 turns a periodic action off.

    accelerator: auto, cpu or cuda (Lightning Fabric's names).
    precision: 32-true, or bf16-mixed (autocast).
    n_threads: torch threads; torch's default when null.
    log_every_steps: rows of metrics.csv.
    eval_every_steps: evaluate the dev sources every so many steps.
    eval_every_minutes: and every so many minutes.
    eval_batch_s: seconds of audio per evaluation batch.
    best_by: dev source name whose WER picks run/best; the mean of all when null.
    state_every_steps: save the exact state for resuming.
    state_every_minutes: and every so many minutes.
    checkpoint_every_steps: save run/checkpoints/step_N, for averaging.
    keep_checkpoints: how many of those are kept, newest first.
    average_last: at the end, average this many of them into run/average; 0 for none.
    """

    accelerator: str = "auto"
    precision: str = "32-true"
    n_threads: int | None = None
    log_every_steps: int = 20
    eval_every_steps: int = 500
    eval_every_minutes: float = 0.0
    eval_batch_s: float = 120.0
    best_by: str | None = None
    state_every_steps: int = 200
    state_every_minutes: float = 5.0
    checkpoint_every_steps: int = 500
    keep_checkpoints: int = 8
    average_last: int = 0

    def __post_init__(self) -> None:
        _check(
            self.precision in ("32-true", "bf16-mixed"),
            f"precision must be 32-true or bf16-mixed, got {self.precision!r}",
        )
        for name in ("eval_every_steps", "state_every_steps", "checkpoint_every_steps", "average_last"):
            _check(getattr(self, name) >= 0, f"{name} must be >= 0, got {getattr(self, name)}")
        _check(self.log_every_steps >= 1, f"log_every_steps must be >= 1, got {self.log_every_steps}")
        _check(self.keep_checkpoints >= 1, f"keep_checkpoints must be >= 1, got {self.keep_checkpoints}")
        _check(self.eval_batch_s > 0, f"eval_batch_s must be > 0, got {self.eval_batch_s}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training run.

    run_dir: everything is written here; relative to the YAML file.
    seed: seed of initialization, data order and augmentation.
    init_from: checkpoint whose weights, vocabulary, features and global CMVN this run starts from.
    override_init: with init_from, build a new vocabulary and CMVN; tensors of other shapes start fresh.
    features: keys of FeatureConfig; preset names the front end.
    model: keys of ConformerConfig; preset names the size. vocab_size is filled in.
    cmvn_utterances: clips that the global mean and variance are computed on.
    data: see below.
    augment: see below.
    spec_augment: see below.
    tokenizer: see below.
    streaming: see below.
    decoder: see below.
    optim: see below.
    distillation: see below.
    run: see below.
    """

    run_dir: str = "runs/tiny"
    seed: int = 1
    init_from: str | None = None
    override_init: bool = False
    features: dict[str, Any] = field(default_factory=lambda: {"preset": "nemo"})
    model: dict[str, Any] = field(default_factory=lambda: {"preset": "tiny"})
    cmvn_utterances: int = 500
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    streaming: StreamingConfig = field(default_factory=StreamingConfig)
    decoder: DecoderSection = field(default_factory=DecoderSection)
    optim: OptimConfig = field(default_factory=OptimConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        _check(self.seed >= 0, f"seed must be >= 0, got {self.seed}")
        _check(self.cmvn_utterances >= 1, f"cmvn_utterances must be >= 1, got {self.cmvn_utterances}")
        _check(
            self.init_from is not None or not self.decoder.freeze_encoder,
            "decoder.freeze_encoder is true without init_from; name the checkpoint whose encoder stays",
        )
