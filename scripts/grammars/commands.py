"""Grammars of a robot with 40, 200 and 1000 commands; each has those of the smaller ones.

The 40 are written by hand, from one short word to seven words, and some differ by one word. The others are
drawn, seeded, from templates. Three of them ("stop", "lower the arm", "go to the kitchen") are also in the
recipe of tiny-en; the rest are new sentences of words that are mostly known to it.
What this file does not do: say them (clips.py).
"""

import itertools
import random

FORTY = """
stop
stop now
come back
go home
wait here
follow that person
turn around
drive forward
drive backward
turn to the left
turn to the right
go faster please
go slower please
go to the kitchen
go to the loading dock
go to the charger
drive to room twelve
drive to room twenty
lift the arm
lower the arm
open the hand
close the hand
grab the red box
put down the box
hand me the hammer
bring the coffee to the desk
take a photo
start the video
end the video
switch the lamp on
switch the lamp off
play it louder
play it quieter
what time is it
how full is the battery
report your position
begin cleaning the floor
finish cleaning the floor
lock the door
unlock the door
"""

VERBS = ("fetch", "lift", "push", "inspect", "wash", "paint", "hold", "weigh")
COLORS = ("big", "small", "yellow", "green", "metal", "wooden", "empty", "broken")
OBJECTS = ("crate", "pipe", "bucket", "ladder", "cart", "tray", "hose", "basket")
PLACES = ("kitchen", "garden", "cellar", "ramp", "office", "gate", "store room", "second floor")
NUMBERS = (
    "two",
    "three",
    "five",
    "eight",
    "eleven",
    "fifteen",
    "twenty four",
    "thirty six",
    "fifty",
    "ninety",
)
TEMPLATES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (VERBS, ("the",), COLORS, OBJECTS),
    (("carry the", "roll the", "take this"), OBJECTS, ("to the",), PLACES),
    (("turn the camera", "tilt the mirror", "rotate the plate"), ("by",), NUMBERS, ("degrees",)),
    (("back up", "advance", "rise"), NUMBERS, ("inches", "feet")),
    (("sleep for", "work for", "come again in"), NUMBERS, ("minutes", "hours")),
    (("count the", "where is the nearest", "show me the"), COLORS, OBJECTS),
    (("heat the", "cool the", "clean the", "lock the"), PLACES),
)


def make_commands(n_commands: int) -> list[str]:
    """Return distinct commands, the first 40 of them always the same; at most 1000."""
    forty = FORTY.strip().splitlines()
    kinds = [sorted(" ".join(words) for words in itertools.product(*template)) for template in TEMPLATES]
    rng = random.Random(5)
    # Every kind has its share of the first hundreds; the large ones fill the rest.
    decks = [rng.sample(kind, len(kind)) for kind in kinds]
    dealt = [command for row in itertools.zip_longest(*decks) for command in row if command is not None]
    return list(dict.fromkeys([*forty, *dealt]))[:n_commands]
