"""What README.md and docs/ tell people to type works: commands parse and, where they can, run; Python too.

Every line of a bash or console block must be understood here, so that none goes stale unseen.
Sound files, manifests, bundles and checkpoints that a line names are made from what is embedded.
What needs a microphone, minutes, much speech, TensorRT or the network is not run: of those lines the options,
scripts and extras are checked. docs/jetson.md has a test of its own (tests/packaging/test_jetson.py).
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import pytest

from edge_asr.cli.main import cli
from edge_asr.runtime.decoding.lm.kneser_ney import build_ngrams
from edge_asr.runtime.decoding.lm.model_file import write_model

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
README_LINES = 90
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SOUND = re.compile(r"[\w./-]+\.(?:wav|flac|ogg|opus|mp3)")
#: Programs that are not ours; nothing to check in them here.
OTHERS = {
    "git",
    "cd",
    "sudo",
    "apt-get",
    "arecord",
    "jq",
    "source",
    "python3",
    "export",
    "cat",
    "ffmpeg",
    "gcc",
}
#: Commands that need a microphone, minutes or more speech than a sample; tested elsewhere.
NOT_RUN = {"train", "listen", "serve", "build", "quantize", "bench"}
NOT_RUN_WITH = {"--engine", "--calibration", "--lookahead-ms", "--left-context-ms", "--ray"}
#: Decoders that tiny-en has not; tests/cli/test_rescoring.py runs them.
NOT_RUN_WITH |= {"rescoring", "attention"}


def blocks(*languages: str, pages: Sequence[Path] = PAGES) -> list[str]:
    texts = [page.read_text(encoding="utf-8") for page in pages]
    found = [code for text in texts for language, code in BLOCK.findall(text) if language in languages]
    return list(dict.fromkeys(found))


def commands(pages: Sequence[Path] = PAGES) -> list[str]:
    """Command lines of all shell blocks, continued lines joined; output in console blocks left out."""
    lines = []
    for language in ("bash", "sh", "console"):
        for code in blocks(language, pages=pages):
            for line in code.replace("\\\n", " ").splitlines():
                if language == "console" and not line.startswith("$ "):
                    continue
                line = re.sub(r"(^|\s+)#.*", "", line.removeprefix("$ ")).strip()
                if line:
                    lines.append(line)
    return list(dict.fromkeys(lines))


def programs(line: str) -> list[list[str]]:
    """The words of each program of a command line: pipes, && and redirections end one."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&;<>()"):
            found.append([])
        else:
            found[-1].append(word)
    return [words for words in found if words]


def ours(name: str) -> list[str]:
    return [line for line in commands() if any(words[0] == name for words in programs(line))]


def test_readme_has_commands_and_both_scripts() -> None:
    names = {words[0] for line in commands(PAGES[:1]) for words in programs(line)}
    assert {"scripts/demo", "scripts/test", "edge-asr"} <= names


def test_readme_stays_short() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= README_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_readme_leads_to_every_page() -> None:
    """A reader reaches every page of docs/ from README.md by links."""
    reached: set[Path] = set()
    waiting = [PAGES[0]]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        links = LINK.findall(page.read_text(encoding="utf-8"))
        targets = {(page.parent / link).resolve() for link in links if link.endswith(".md")}
        waiting += targets - reached
    assert set(PAGES) <= reached


@pytest.mark.parametrize("line", commands())
def test_every_line_is_known(line: str) -> None:
    first, *arguments = programs(line)[0]
    if first.startswith("scripts/"):
        assert os.access(REPOSITORY / first, os.X_OK), f"{first} is not there or not executable"
    elif first in ("python", "python3") and arguments[0].startswith("scripts/"):
        assert (REPOSITORY / arguments[0]).is_file(), arguments[0]
    elif first == "pip":
        text = (REPOSITORY / "pyproject.toml").read_text()
        for extras in re.findall(r"\[([\w,]+)\]", line):
            for extra in extras.split(","):
                assert re.search(rf"^{extra} = \[", text, re.MULTILINE), f"no extra {extra}"
    else:
        assert first in OTHERS | {"edge-asr"}, f"what is {first}? run it here, or add it to OTHERS"


@pytest.mark.parametrize("line", ours("edge-asr"))
def test_options_exist(line: str) -> None:
    for program, *words in programs(line):
        if program != "edge-asr" or not words or words[0].startswith("-"):
            continue
        context = click.Context(cli, info_name="edge-asr")
        command = cli.get_command(context, words[0])
        assert command is not None, f"no command {words[0]}"
        try:
            command.make_context(words[0], words[1:], parent=context)
        except click.exceptions.Exit:  # --help
            pass
        except click.BadParameter as error:
            if "does not exist" not in str(error):
                raise


def put_in_place(text: str, folder: Path, sample: Path) -> None:
    """Make the inputs that a command or a Python block names, from what is embedded."""
    embedded = REPOSITORY / "edge_asr" / "models" / "tiny-en"
    for name in SOUND.findall(text):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample, target)
    for name in re.findall(r"[\w./-]+\.jsonl", text):
        row = {"audio_filepath": str(sample), "text": sample.with_suffix(".txt").read_text().strip()}
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(row) + "\n")
    for name in re.findall(r"--hotwords ([\w./-]+)", text):
        (folder / name).write_text("marvin\nrecharge:1.5\n")
    for name in re.findall(
        r"(?:grammar (?:check |compile )?|lm build |align [\w./-]+ )([\w./-]+\.txt)", text
    ):
        (folder / name).write_text(sample.with_suffix(".txt").read_text())
    for name in re.findall(r"--lm ([\w./-]+\.bin)", text):
        words = sample.with_suffix(".txt").read_text().split()
        write_model(folder / name, build_ngrams([words], 2))
    for name in re.findall(r"(?:-m|--model|inspect) ([\w./-]+)|load\(\"([\w./-]+)\"", text):
        bundle = next(filter(None, name))
        if bundle != "tiny-en" and not (folder / bundle).exists():
            (folder / bundle).parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(embedded / "bundle", folder / bundle)
    for name in re.findall(r"edge-asr export ([\w./-]+)", text):
        if name != "tiny-en":
            shutil.copytree(embedded / "checkpoint", folder / name)
    for name in re.findall(r"(?:transcribe|--clips) ([\w-]+/)", text):
        (folder / name).mkdir(exist_ok=True)
        shutil.copy(sample, folder / name)


def runs_here(line: str) -> bool:
    """Whether all its programs are ours or harmless, and none needs a microphone or minutes."""
    for program, *words in programs(line):
        if program == "edge-asr" and NOT_RUN & set(words[:1]) and "--print-config" not in words:
            return False
        if program not in ("edge-asr", "cat", "jq") and words:
            return False
        if words[:2] == [
            "grammar",
            "tune",
        ]:  # it takes two kinds of speech; tests/cli/test_grammar.py has them
            return False
        if "--calibrate-confidence" in words:  # it takes 500 words; tests/cli/test_evaluate.py has them
            return False
        if NOT_RUN_WITH & set(words):
            return False
        if words[:1] == ["export"] and line not in commands(PAGES[:1]):  # slow, and tested in tests/export
            return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in ours("edge-asr") if runs_here(line)])
def test_commands_run(line: str, tmp_path: Path, sample_path: Path) -> None:
    put_in_place(line, tmp_path, sample_path)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    healthy = (0, 1) if "edge-asr doctor" in line else (0,)  # 1: something on this machine is broken
    assert done.returncode in healthy, f"{line}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"
    assert done.stdout or " -o " in line or ">" in line


def imports(code: str) -> list[tuple[str, str]]:
    return [
        (str(node.module), alias.name)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]


def python_runs_here(code: str) -> bool:
    """Whether a block needs neither a microphone nor a bundle with a streaming graph or a decoder."""
    names = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    return not names & {"MicrophoneSource", "StreamingModel", "rescoring_decoder", "attention_decoder"}


@pytest.mark.parametrize("code", blocks("python"))
def test_python_imports_exist(code: str) -> None:
    for module, name in imports(code):
        assert hasattr(importlib.import_module(module), name), f"from {module} import {name}"


@pytest.mark.slow
@pytest.mark.parametrize("code", [code for code in blocks("python") if python_runs_here(code)])
def test_python_runs(code: str, tmp_path: Path, sample_path: Path) -> None:
    put_in_place(code, tmp_path, sample_path)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, f"{code}\n{done.stderr[-2000:]}"
