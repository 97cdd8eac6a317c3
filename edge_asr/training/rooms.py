"""Impulse responses of simulated rooms: the first echoes by the image method, then a decaying tail.

The image method (Allen and Berkley 1979, "Image method for efficiently simulating small-room acoustics")
mirrors the source at the six walls of a box; each image adds its sound at its distance. That is exact but
slow for late sound, where echoes are too dense to be told apart, so after `_IMAGES_S` there is noise that
decays with the room's reverberation time. Walls absorb all frequencies alike, and nothing stands in the room.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import scipy.signal

from edge_asr.training.config import AugmentConfig

SPEED_OF_SOUND = 343.0
_IMAGES_S = 0.08
"""Time up to which single images are followed."""
_LOWEST_HZ = 60.0
"""High-pass of a response: images all have one sign, which piles up at frequencies that rooms do not pass."""


def build_rooms(config: AugmentConfig, sample_rate: int, seed: int) -> list[npt.NDArray[np.float32]]:
    """`config.n_rooms` impulse responses, f32 [n] each: direct sound first, with a peak of about 1."""
    rng = np.random.default_rng([seed, 5])
    responses = []
    for _ in range(config.n_rooms):
        size = rng.uniform((2.5, 2.5, 2.3), (9.0, 7.0, 3.5))
        microphone = rng.uniform(0.3, size - 0.3)
        source = microphone
        # A place for the source at about the distance drawn; a room too small for it gives what it has.
        distance = rng.uniform(*config.room_distance_m)
        for _ in range(20):
            direction = rng.standard_normal(3) * (1.0, 1.0, 0.4)
            source = np.clip(microphone + distance * direction / np.linalg.norm(direction), 0.2, size - 0.2)
            if np.linalg.norm(source - microphone) > 0.8 * distance:
                break
        rt60_s = rng.uniform(*config.room_rt60_s)
        responses.append(simulate_room(size, source, microphone, rt60_s, sample_rate, rng))
    return responses


def simulate_room(
    size_m: npt.NDArray[np.float64],
    source_m: npt.NDArray[np.float64],
    microphone_m: npt.NDArray[np.float64],
    rt60_s: float,
    sample_rate: int,
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """The impulse response from `source_m` to `microphone_m` in a box, f32 [about rt60_s * sample_rate].

    Args:
        size_m: [3] length, width and height; one corner is the origin.
        source_m, microphone_m: [3] places inside.
        rt60_s: time in which sound decays by 60 dB; it sets the absorption (Eyring 1930).
        sample_rate: Hz.
        rng: small random shifts of the images, against flutter (De Sena et al. 2015), and the tail.
    """
    volume = float(np.prod(size_m))
    surface = 2.0 * sum(float(a * b) for a, b in itertools.combinations(size_m, 2))
    reflection = float(np.exp(-0.5 * 0.161 * volume / (surface * rt60_s)))
    reach_m = SPEED_OF_SOUND * _IMAGES_S
    squares, orders = np.zeros(1), np.zeros(1)
    for length, source, microphone in zip(size_m, source_m, microphone_m, strict=True):
        n = np.arange(-int(reach_m / (2 * length)) - 1, int(reach_m / (2 * length)) + 2)
        places = np.concatenate((source + 2 * n * length, -source + 2 * n * length)) - microphone
        n_reflections = np.concatenate((2 * abs(n), abs(n) + abs(n - 1)))
        squares = (squares[:, None] + places**2).ravel()
        orders = (orders[:, None] + n_reflections).ravel()
    distance = np.sqrt(squares)
    direct = float(np.linalg.norm(source_m - microphone_m))
    shifted = np.maximum(
        distance + np.where(orders > 0, rng.uniform(-0.04, 0.04, len(distance)), 0.0), direct
    )
    delay = (shifted - direct) / SPEED_OF_SOUND * sample_rate
    heard = shifted < reach_m
    amplitude = direct * reflection**orders / np.maximum(shifted, 0.05)
    n_samples = max(int(rt60_s * sample_rate), int(_IMAGES_S * sample_rate) + 1)
    whole = delay[heard].astype(np.int64)
    part = delay[heard] - whole
    response = np.zeros(n_samples + 2)
    response += np.bincount(whole, amplitude[heard] * (1 - part), minlength=len(response))
    response += np.bincount(whole + 1, amplitude[heard] * part, minlength=len(response))
    response = _add_tail(response[:n_samples], reach_m - direct, rt60_s, sample_rate, rng)
    high_pass = scipy.signal.butter(2, _LOWEST_HZ, "highpass", fs=sample_rate, output="sos")
    filtered: npt.NDArray[np.float32] = scipy.signal.sosfilt(high_pass, response).astype(np.float32)
    return filtered


def _add_tail(
    response: npt.NDArray[np.float64],
    images_m: float,
    rt60_s: float,
    sample_rate: int,
    rng: np.random.Generator,
) -> npt.NDArray[np.float64]:
    """`response` [n] with decaying noise from where its images end, as loud as the last of them."""
    end = min(int(images_m / SPEED_OF_SOUND * sample_rate), len(response))
    before = response[max(end - int(0.02 * sample_rate), 1) : end]
    level = np.sqrt(np.mean(before**2)) if len(before) else 0.0
    # The middle of `before` is 10 ms ahead of the tail.
    time = np.arange(len(response) - end) / sample_rate + 0.01
    response[end:] = level * rng.standard_normal(len(time)) * 10 ** (-3 * time / rt60_s)
    return response
