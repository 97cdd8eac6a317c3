"""`edge-asr align`: the formats, where the text comes from, and what is wrong with one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edge_asr.cli.align import format_alignment
from edge_asr.runtime.alignment.result import AlignedWord, Alignment

TEXT = "Enter 725: start recording, go three meters - and stop."


def word(text: str, start_s: float | None, end_s: float | None) -> AlignedWord:
    found = start_s is not None
    return AlignedWord(text=text, start_s=start_s, end_s=end_s, score=0.5 if found else 0.0, found=found)


ALIGNMENT = Alignment(
    words=(word('"Go', 0.5, 0.75), word("not", None, None), word("left —", 0.75, 1.25)),
    tokens=(),
    duration_s=2.0,
)


def test_words_of_a_recording(run, sample_path: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    result = run("align", sample_path, text)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [w["text"] for w in found["words"]] == [
        "Enter", "725:", "start", "recording,", "go", "three", "meters -", "and", "stop.",
    ]  # fmt: skip
    assert found["n_found"] == found["n_words"] == 9
    assert result.stderr == ""
    for other in (("-",), ("--text", TEXT)):
        assert run("align", sample_path, *other, stdin=TEXT.encode()).stdout == result.stdout
    sound = sample_path.read_bytes()
    assert json.loads(run("align", "-", text, stdin=sound).stdout)["words"] == found["words"]
    result = run("align", sample_path, "--text", "jump over the moon " + TEXT)
    assert result.stderr.startswith("edge-asr: 4 of 13 words were not found in the sound")
    assert [w["found"] for w in json.loads(result.stdout)["words"]] == [False] * 4 + [True] * 9


def test_output_goes_to_a_file_once(run, sample_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.ctm"
    arguments = ("align", sample_path, "--text", TEXT, "--format", "ctm", "-o", output)
    assert run(*arguments).stdout == ""
    lines = output.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 9
    assert all(
        re.fullmatch(rf"{sample_path.stem} 1 \d+\.\d{{3}} \d\.\d{{3}} \S+ [01]\.\d{{3}}", x) for x in lines
    )
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"edge-asr: {output} exists already; add --force to overwrite it, or give another -o\n"
    )
    assert run(*arguments, "--force").exit_code == 0


def test_ctm() -> None:
    assert format_alignment(ALIGNMENT, "ctm", "a b") == (
        'a_b 1 0.500 0.250 "Go 0.500\na_b 1 0.750 0.500 left_— 0.500\n'
    )


def test_textgrid() -> None:
    lines = format_alignment(ALIGNMENT, "textgrid", "a").splitlines()
    assert lines[:2] == ['File type = "ooTextFile"', 'Object class = "TextGrid"']
    assert "        intervals: size = 4" in lines
    texts = [line.split(" = ")[1] for line in lines if line.lstrip().startswith("text = ")]
    assert texts == ['""', '"""Go"', '"left —"', '""']
    times = [float(line.split(" = ")[1]) for line in lines if line.startswith("            xm")]
    assert times == [0, 0.5, 0.5, 0.75, 0.75, 1.25, 1.25, 2]


def test_subtitles() -> None:
    assert format_alignment(ALIGNMENT, "srt", "a") == ('1\n00:00:00,500 --> 00:00:01,333\n"Go left —\n\n')
    assert format_alignment(ALIGNMENT, "vtt", "a").startswith("WEBVTT\n\n00:00:00.500 --> 00:00:01.333\n")


def test_an_unknown_format(run, sample_path: Path) -> None:
    result = run("align", sample_path, "--text", "go", "--format", "praat")
    assert result.exit_code == 2
    assert "'praat' is not one of 'json', 'ctm', 'textgrid', 'srt', 'vtt'" in result.stderr
    with pytest.raises(ValueError, match="unknown format 'praat'"):
        format_alignment(ALIGNMENT, "praat", "a")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give the text once: the name of a file, - for stdin, or --text WORDS"),
        (["-", "--text", "go"], 2, "give the text once"),
        (["--text", "..."], 1, "edge-asr: the text '...' has no word to align; give what is said"),
        (
            ["--text", "go 左"],
            1,
            "edge-asr: the model cannot spell '左', word 2 of the text: no token has '左'; ",
        ),
        (
            ["--text", "go left " * 100],
            1,
            " s at least, and the sound has 7.8 s; give the text of this recording",
        ),
        (["nowhere.txt"], 1, "edge-asr: nowhere.txt: No such file or directory"),
    ],
)
def test_what_is_wrong_is_one_line(
    run, sample_path: Path, arguments: list[str], code: int, message: str
) -> None:
    result = run("align", sample_path, *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert code == 2 or result.stderr.count("\n") == 1


def test_a_text_that_is_none(run, sample_path: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xff\xfe go")
    result = run("align", sample_path, tmp_path / "text")
    assert result.exit_code == 1
    assert "text is not UTF-8 text (" in result.stderr
    result = run("align", "-", "-", stdin=b"go")
    assert result.exit_code == 2
    assert "- (stdin) can be the sound or the text, not both" in result.stderr
