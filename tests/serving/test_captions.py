"""The captions page: what the server sends, and what people see, in a real browser with a microphone.

Chromium's microphone plays the sample. Tests in the browser carry the marker `browser`; they are skipped with
the reason where there is no Chromium. scripts/chromium.py bounds every wait. This file is longer than others
because all of its tests share one browser.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
import soxr
import webvtt
from chromium import Chromium, Page, find_chromium
from serving_clients import HTTP, MakeServer, Running, is_near

from edge_asr.audio import read_audio
from edge_asr.serving.access import Access
from edge_asr.transcript_formats import format_srt, format_vtt, split_into_cues

TOKEN = "correct-horse-battery-staple"
SAID = ("enter seven two five", "start recording", "go three meters and stop")
IS = "document.body.dataset.phase === '{}'"


@dataclass
class Word:
    text: str
    start_s: float
    end_s: float


@pytest.fixture(scope="module")
def chromium(sample_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    program = find_chromium()
    if program is None:
        pytest.skip("needs Chromium, and scripts/test could not install it: apt install chromium")
    sound = tmp_path_factory.mktemp("microphone") / "speech.wav"
    speech = soxr.resample(read_audio(sample_path), 16_000, 48_000)
    soundfile.write(sound, np.concatenate([np.zeros(24_000), speech]), 48_000, subtype="PCM_16")
    with Chromium(program, sound) as browser:
        yield browser


@pytest.fixture(scope="module")
def one_tab(chromium: Chromium) -> Iterator[Page]:
    with chromium.page() as opened:
        yield opened


@pytest.fixture
def tab(one_tab: Page) -> Page:
    """An empty tab, the same one for all tests."""
    one_tab.open("about:blank")
    one_tab.show()
    return one_tab


@pytest.fixture
def page(tab: Page, server: Running) -> Page:
    """The page, as it is when it has been loaded."""
    tab.open(f"{server.http}/")
    tab.until("document.getElementById('model').textContent === 'tiny-en'")
    return tab


@pytest.fixture(scope="module")
def server(make_server: MakeServer) -> Iterator[Running]:
    """A server that loses nothing on a busy machine: sound may wait for a minute."""
    with make_server(queue_s=60) as running:
        yield running


def start(page: Page) -> None:
    page.value("maxWaitingS = 60")
    page.click("#toggle")
    page.until(IS.format("listening"))


def stop(page: Page) -> None:
    page.click("#toggle")
    page.until(IS.format("idle"))


def hear(page: Page, is_heard: Callable[[], bool]) -> None:
    """Listen to the speech; again if not all was heard, since on a busy machine the browser loses sound."""
    for _ in range(4):
        start(page)
        page.until("clockS > 8.8")  # the speech has passed, however slowly the browser runs
        stop(page)
        if is_heard():
            return
        page.value("clear()")
    raise AssertionError(page.text("#log"))


def are_near(heard: list[str], said: tuple[str, ...]) -> bool:
    return len(heard) == len(said) and all(map(is_near, heard, said))


def rows(page: Page, kind: str) -> list[str]:
    """The text of each row of a kind, without its times."""
    found: list[str] = page.value(f"[...document.querySelectorAll('#log .{kind} p')].map(p => p.innerText)")
    return found


def until_rows(page: Page, kind: str, n: int) -> list[str]:
    page.until(f"document.querySelectorAll('#log .{kind}').length >= {n}")
    return rows(page, kind)


def test_the_page_may_do_what_it_does_and_nothing_else(make_server: MakeServer) -> None:
    with make_server(access=Access(token=TOKEN)) as running:
        answer = HTTP.get(f"{running.http}/")
        rebound = HTTP.get(f"{running.http}/", headers={"Host": "evil.example"})
    assert answer.status_code == 200
    assert TOKEN not in answer.text
    assert rebound.status_code == 403
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    for name in ("script", "style"):
        (content,) = re.findall(rf"<{name}\b[^>]*>(.*?)</{name}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{name}-src"].split()[0] == f"'sha256-{digest}'"
    assert "unsafe" not in " ".join(policy.values())
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    # Nothing from elsewhere, no handlers or styles in attributes, no text that becomes HTML.
    without_icon = answer.text.replace("xmlns='http://www.w3.org/2000/svg'", "")
    assert set(re.findall(r"https?://[\w.]+", without_icon)) <= {"http://localhost"}
    assert not re.search(
        r"<[^>]+\s(?:on\w+|style|src)=|innerHTML|eval\(|localStorage|document\.cookie", without_icon
    )


@pytest.fixture(scope="module")
def session(
    chromium: Chromium, server: Running, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Page, Path, list[str]]]:
    """The page after the sample was spoken and saved, the folder of the files, and the partials it showed."""
    folder = tmp_path_factory.mktemp("saved")
    with chromium.page() as page:
        page.save_into(folder)
        page.open(f"{server.http}/")
        page.value(
            "window.partials = []; new MutationObserver(() =>"
            " partials.push(document.querySelector('#partial p').textContent))"
            ".observe(document.getElementById('partial'), {childList: true, subtree: true});"
            "window.levels = []; new MutationObserver(() =>"
            " levels.push(Number(document.getElementById('meter').ariaValueNow)))"
            ".observe(document.getElementById('meter'), {attributes: true})"
        )
        hear(page, lambda: are_near(rows(page, "final"), SAID))
        for form in ("srt", "vtt", "json"):
            page.click(f"[data-save={form}]")
            wait_for_file(folder, form)
        yield page, folder, page.value("partials")


def wait_for_file(folder: Path, suffix: str) -> Path:
    until = time.monotonic() + 30
    while not (found := list(folder.glob(f"captions-*.{suffix}"))):
        assert time.monotonic() < until, f"no {suffix} was saved"
        time.sleep(0.05)
    return found[0]


@pytest.mark.browser
def test_what_is_said_appears(session: tuple[Page, Path, list[str]]) -> None:
    page, _, partials = session
    assert any(text and is_near(text, "enter seven two") for text in partials)
    assert page.value("document.getElementById('partial').hidden")
    assert page.value("Math.max(...levels)") > -40
    # The default pause is 0.6 s; the rest is computing, on a machine that may be busy.
    assert 0.55 <= float(page.text("#delay").removesuffix(" s")) < 10
    times = page.value("[...document.querySelectorAll('#log .final time')].map(t => t.textContent)")
    assert times == [f"0:{int(event['start_s']):02d}" for event in page.value("history")]
    assert page.complaints() == []


@pytest.mark.browser
def test_words_are_marked_by_confidence_and_not_by_color_alone(session: tuple[Page, Path, list[str]]) -> None:
    page, _, _ = session
    words = [word for event in page.value("history") for word in event["words"]]
    marked = page.value("[...document.querySelectorAll('#log u')].map(u => [u.textContent, u.className])")
    expected = [
        [word["text"], "doubt" if word["confidence"] < 0.6 else "check"]
        for word in words
        if word["confidence"] < 0.9
    ]
    assert marked == expected
    lines = page.value(
        "['check', 'doubt'].map(c => document.querySelector('.legend .' + c))"
        ".map(e => getComputedStyle(e).textDecorationStyle)"
    )
    assert lines == ["dotted", "dashed"]


@pytest.mark.browser
def test_saved_files_are_what_was_said(session: tuple[Page, Path, list[str]]) -> None:
    _, folder, _ = session
    saved = json.loads(wait_for_file(folder, "json").read_text(encoding="utf-8"))
    finals = [event for event in saved["events"] if event["type"] == "final"]
    assert saved["model"] == "tiny-en"
    assert is_near(" ".join(final["text"] for final in finals), " ".join(SAID))
    assert finals[-1]["end_s"] <= saved["duration_s"]
    srt, vtt = wait_for_file(folder, "srt"), wait_for_file(folder, "vtt")
    for cues in (webvtt.from_srt(srt), webvtt.read(vtt)):
        assert " ".join(cue.text for cue in cues).split() == [w["text"] for f in finals for w in f["words"]]
        assert abs(cues[0].start_in_seconds - finals[0]["start_s"]) <= 1  # webvtt gives whole seconds
    own = split_into_cues([Word(w["text"], w["start_s"], w["end_s"]) for f in finals for w in f["words"]])
    assert srt.read_text() == format_srt(own)
    assert vtt.read_text() == format_vtt(own)


@pytest.mark.browser
def test_subtitles_are_those_of_transcribe(page: Page) -> None:
    """The writers of the page and edge_asr.transcript_formats agree on texts made by chance."""
    chance = random.Random(0)
    letters = "abcdefghij<&>é "
    texts: list[list[Word]] = []
    for _ in range(200):
        at_s, words = 0.0, []
        for _ in range(chance.randrange(1, 40)):
            length = chance.choice((1, 3, 5, 8, 100))
            begin_s = at_s + chance.randrange(0, 120) / 100
            at_s = round(begin_s + chance.randrange(1, 80) / 100, 2)
            text = "".join(chance.choice(letters[:-1]) for _ in range(length))
            words.append(Word(text, round(begin_s, 2), at_s))
        texts.append(words)
    given = json.dumps([[vars(word) for word in words] for words in texts])
    for form, write in (("srt", format_srt), ("vtt", format_vtt)):
        made = page.value(f"{given}.map(words => WRITERS.{form}(cuesFromWords(words)))")
        assert [re.sub(r"\d\d\d(?=\n| -->)", "", text) for text in made] == [
            re.sub(r"\d\d\d(?=\n| -->)", "", write(split_into_cues(words))) for words in texts
        ]


@pytest.mark.browser
def test_by_keyboard_alone(page: Page, tmp_path: Path) -> None:
    page.save_into(tmp_path)

    def tab_to(selector: str, *, shift: bool = False) -> None:
        for _ in range(20):
            page.press("Tab", shift=shift)
            if page.value(f"document.activeElement.matches('{selector}')"):
                focus = page.value(
                    "(s => [s.outlineStyle, parseFloat(s.outlineWidth)])"
                    "(getComputedStyle(document.activeElement))"
                )
                assert focus[0] != "none", f"the focus on {selector} cannot be seen"
                assert focus[1] >= 2
                return
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to("#captions")
    tab_to("#toggle")
    tab_to("#microphone")
    tab_to("#more")
    page.press(" ")
    assert page.value("document.getElementById('more').getAttribute('aria-expanded')") == "true"
    tab_to("#hotwords", shift=True)
    page.write("seven, marvin")
    tab_to("#toggle", shift=True)
    page.press("Enter")
    page.until(IS.format("listening"))
    assert page.value("document.activeElement.id") == "toggle"
    until_rows(page, "final", 1)
    page.press(" ")
    page.until(IS.format("idle"))
    tab_to("[data-save=srt]")
    page.press("Enter")
    assert "-->" in wait_for_file(tmp_path, "srt").read_text()
    tab_to("#clear")
    page.press("Enter")
    assert rows(page, "final") == []
    assert page.value("document.activeElement.id") == "toggle"
    assert page.complaints() == []


@pytest.mark.browser
def test_everything_has_a_name_and_captions_are_read_out(page: Page) -> None:
    page.value("document.getElementById('options').hidden = false")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    found = [
        (node["role"]["value"], node["name"]["value"])
        for node in nodes
        if not node["ignored"] and "role" in node and "name" in node
    ]
    controls = [
        entry for entry in found if entry[0] in ("button", "combobox", "textbox", "checkbox", "meter")
    ]
    assert len(controls) >= 12
    assert all(name for _, name in controls), controls
    assert {"Start", "Save as SRT", "Save as WebVTT", "Save as JSON"} <= {name for _, name in controls}
    live = {
        node["role"]["value"]: [p["value"]["value"] for p in node["properties"] if p["name"] == "live"]
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in ("log", "status")
    }
    assert live == {"log": ["polite"], "status": ["polite"]}


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_never_scrolls_sideways(page: Page, width: int) -> None:
    page.show(width=width, height=740)
    page.value(
        "say(NOT_SECURE); showPartial('w'.repeat(200), 4000);"
        "addRow('gap', 4000, p => { p.textContent = 'g'.repeat(90); });"
        "document.getElementById('options').hidden = false"
    )
    too_wide = page.value(
        "[...document.querySelectorAll('body, main, footer, .column, .row, button, select, textarea, p')]"
        ".filter(e => e.getClientRects().length && (e.getBoundingClientRect().right > innerWidth"
        " || e.matches('body, main, .column') && e.scrollWidth > e.clientWidth))"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert too_wide == []
    assert page.value("document.documentElement.scrollWidth") == width
    small = page.value(
        "[...document.querySelectorAll('footer button, select')].filter(e => e.offsetParent)"
        ".map(e => [e.id || e.textContent, e.offsetHeight]).filter(([_, height]) => height < 36)"
    )
    assert small == []


@pytest.mark.browser
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_text_is_readable_in_light_and_dark(page: Page, is_dark: bool) -> None:
    page.show(is_dark=is_dark)
    page.value(
        "session = {gaps: [], beginS: 0}; showPartial('in progress', 1); say('A notice.');"
        "showFinal({type: 'final', text: 'a b', start_s: 0, reason: 'end',"
        " words: [{text: 'a', confidence: 0.7}, {text: 'b', confidence: 0.1}]})"
    )
    colors = page.value(
        "(() => { const of = (e, key) => getComputedStyle(e)[key];"
        "const isClear = e => /, 0\\)|transparent/.test(of(e, 'backgroundColor'));"
        "const ground = e => isClear(e) ? ground(e.parentElement) : of(e, 'backgroundColor');"
        "return [...document.querySelectorAll('h1, #model, #state, time, .row p, u, #notice, #toggle, dt'"
        " + ', dd, .legend span, #more')].filter(e => e.textContent && e.getClientRects().length)"
        ".map(e => [e.outerHTML.slice(0, 60), of(e, 'color'), ground(e)]); })()"
    )
    paper = page.value("getComputedStyle(document.body).backgroundColor")
    assert len(colors) > 15
    assert (luminance(paper) < 0.05) == is_dark
    for what, ink, ground in colors:
        high, low = sorted((luminance(ink), luminance(ground)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, f"{what}: {ink} on {ground}"  # WCAG 2.2, 1.4.3


def luminance(color: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, as WCAG 2.2 defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.browser
def test_a_server_that_goes_and_comes_back(tab: Page, make_server: MakeServer) -> None:
    page = tab
    with make_server() as running:
        page.open(f"{running.http}/")
        start(page)
        page.until("document.querySelector('#partial p').textContent")
    page.until(IS.format("reconnecting"))
    assert page.text("#state") == "Trying again"
    assert page.text("#notice").startswith("The server is stopping. This page tries again by itself")
    assert rows(page, "final")  # the server delivers what it has heard when it stops
    page.until("document.getElementById('notice').textContent.startsWith('The server does not answer.')")
    page.until("maxWaitingS = 1, unsentS > 0.2")
    with make_server(port=urlsplit(running.http).port):
        page.until(IS.format("listening"))
        assert page.value("document.getElementById('notice').hidden")
        (gap,) = until_rows(page, "gap", 1)
        assert re.fullmatch(r"\d+\.\d s were not heard: the connection was broken", gap)
        page.until("session.sentS > 0.5")
        stop(page)
    events: list[dict[str, Any]] = page.value("history")
    lost = next(event for event in events if event["type"] == "gap")
    later = [event for event in events[events.index(lost) + 1 :] if event["type"] == "final"]
    assert all(event["start_s"] >= lost["at_s"] + lost["lost_s"] for event in later)
    assert all("Failed to load" in text or "WebSocket connection" in text for text in page.complaints())


@pytest.mark.browser
def test_a_server_that_is_not_there(tab: Page, make_server: MakeServer) -> None:
    page = tab
    with make_server() as running:
        page.open(f"{running.http}/")
    page.click("#toggle")
    page.until("document.getElementById('notice').textContent === 'The server does not answer.'")
    page.until(IS.format("idle"))


@pytest.mark.browser
def test_a_token_is_asked_for(tab: Page, make_server: MakeServer) -> None:
    page = tab
    with make_server(access=Access(token=TOKEN)) as running:
        page.open(f"{running.http}/")
        assert page.value("document.activeElement.id") == "token"
        assert page.complaints() == []
        page.write("wrong-wrong-wrong-wrong")
        page.press("Enter")
        page.until("document.getElementById('notice').textContent === 'The token is wrong.'")
        assert page.value("sessionStorage.length + localStorage.length + document.cookie.length") == 0
        page.value("document.getElementById('token').value = ''")
        page.write(TOKEN)
        page.press("Enter")
        page.until("document.getElementById('token-form').hidden")
        assert page.text("#model") == "tiny-en"
        start(page)
        stop(page)
        page.open(f"{running.http}/")  # the same tab has it still
        page.until("document.getElementById('model').textContent === 'tiny-en'")
        assert page.value("document.getElementById('token-form').hidden")
        assert page.value("[localStorage.length, document.cookie]") == [0, ""]


@pytest.mark.browser
def test_options_reach_the_session(page: Page) -> None:
    page.click("#more")
    page.click("#digits")
    page.click("#grammar")
    page.write("(start|stop")
    page.click("#toggle")
    page.until("!document.getElementById('notice').hidden")
    page.until(IS.format("idle"))
    assert "grammar" in page.text("#notice")
    page.value("document.getElementById('grammar').value = 'enter seven two five\\nopen the door'")
    hear(page, lambda: rows(page, "final") == ["enter 725"] and len(rows(page, "unmatched")) == 2)
    assert rows(page, "unmatched")[0].startswith("No phrase of the grammar; it sounded like")
    assert is_near(page.text("#log .unmatched em"), "start recording")
    assert page.complaints() == []


@pytest.mark.browser
def test_lost_sound_is_shown_and_counts_in_later_times(page: Page) -> None:
    page.value(
        "session = {beginS: 100, gaps: [], sentS: 5};"
        "onEvent({type: 'gap', at_s: 3, lost_s: 2.5, reason: 'queue_overflow', estimated: true});"
        "onEvent({type: 'final', text: 'late', start_s: 4, end_s: 5, reason: 'end',"
        " words: [{text: 'late', start_s: 4, end_s: 5, confidence: 1}]})"
    )
    assert rows(page, "gap") == ["About 2.5 s were not heard: recognition was too slow"]
    gap, final = page.value("history")
    assert gap["at_s"] == 103
    assert [final["start_s"], final["words"][0]["end_s"]] == [106.5, 107.5]


@pytest.mark.browser
@pytest.mark.parametrize(
    "error, sentence",
    [
        ("NotAllowedError", "The browser does not let this page use the microphone."),
        ("NotFoundError", "There is no microphone."),
        ("OverconstrainedError", "This microphone is gone."),
    ],
)
def test_a_microphone_that_cannot_be_had(page: Page, error: str, sentence: str) -> None:
    page.value(
        "navigator.mediaDevices.getUserMedia ="
        f" () => Promise.reject(new DOMException('', '{error}')), undefined"
    )
    page.click("#toggle")
    page.until("!document.getElementById('notice').hidden")
    assert page.text("#notice").startswith(sentence)
    assert page.value(IS.format("idle"))


@pytest.mark.browser
def test_a_muted_microphone_is_noticed(page: Page) -> None:
    page.value("phase = 'listening'; showLevel(0, 3.1)")
    assert page.text("#notice") == "The microphone gives nothing but silence; it may be muted."
    page.value("showLevel(0.1, 0.1)")
    assert page.value("document.getElementById('notice').hidden")


@pytest.mark.browser
def test_text_is_never_html_and_foreign_scripts_do_not_run(page: Page) -> None:
    text = "<img src=x onerror=window.foreign=1>"
    page.value(f"session = {{gaps: [], beginS: 0}}; onEvent({{type: 'partial', text: {text!r}, start_s: 0}})")
    assert page.text("#partial p") == text
    assert page.complaints() == []
    page.value(
        "(s => { s.textContent = 'window.foreign = 1'; document.body.append(s); })"
        "(document.createElement('script'))"
    )
    assert page.value("window.foreign") is None
    assert any("Content Security Policy" in complaint for complaint in page.complaints())
