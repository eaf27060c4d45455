"""Every command and every Python block of README.md and docs/ is run, page by page, as a reader would.

Each page gets a fresh folder with what a reader has: the repository's scripts and configurations (these
made short), `TAU/`, `recordings/` and `some-recording.wav`. A comment before a block can say

    <!-- test: skip REASON -->     one of REASONS
    <!-- test: first COMMAND -->   run this before the block
"""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
PAGES += sorted((REPOSITORY / "docs").glob("*.md"))
REASONS = {"needs a GPU", "needs the network", "needs a cluster", "takes too long"}
LANGUAGES = {"bash", "console", "python"}

BLOCK = re.compile(
    r"((?:^<!-- test: [^\n]* -->\n)*)^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
DIRECTIVE = re.compile(r"<!-- test: (\w+) (.*) -->")
COMMAND = re.compile(r"^(\$ )?(cpprune|make|pip|accelerate|torchrun|slurm/\S+) ", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and what the comments before it say."""

    language: str
    text: str
    skipped: bool
    first: list[str]


def blocks_of(page: str) -> list[Block]:
    """Return the blocks that a reader would run."""
    found = []
    for comments, language, text in BLOCK.findall(page):
        directives = DIRECTIVE.findall(comments)
        reasons = [what for name, what in directives if name == "skip"]
        assert {name for name, _ in directives} <= {"skip", "first"}, comments
        assert set(reasons) <= REASONS, comments
        if language not in LANGUAGES:
            assert not COMMAND.search(text), f"is this block to be run? Call it bash:\n{text}"
            continue
        if language == "console":
            text = "".join(f"{line[2:]}\n" for line in text.splitlines() if line.startswith("$ "))
        first = [what for name, what in directives if name == "first"]
        found.append(Block(language, text, bool(reasons), first))
    assert page.count("<!-- test:") == sum(
        len(DIRECTIVE.findall(b[0])) for b in BLOCK.findall(page)
    )
    return found


def commands_of(text: str) -> list[list[str]] | None:
    """Return the words of each line if all are calls of cpprune, or None if this is for a shell."""
    words = shlex.shlex(text, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    if any(re.fullmatch(r"[();<>|&]+", word) or "*" in word for word in words):
        return None
    lines = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    commands = [line for line in lines if line]
    return commands if all(line[0] == "cpprune" for line in commands) else None


def short(config: Path) -> str:
    """Return a configuration of the repository with epochs of two steps, as few as it can do with."""
    settings = yaml.safe_load(config.read_text())
    epochs = settings.get("quantize", {}).get("start_epoch", 0) + 1
    settings["train"] |= {"epochs": epochs, "batch_size": 8, "precision": "no"}
    settings["data"]["train_fraction"] = 0.1 if "tau" in settings["data"]["path"] else 1.0
    return yaml.safe_dump(settings)


@pytest.fixture
def reader(tmp_path, monkeypatch, scenes_source, noise_folder):
    """The folder of a reader who has read nothing yet."""
    for name in ("launch", "slurm"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    (tmp_path / "configs").mkdir()
    for config in (REPOSITORY / "configs").glob("*.yaml"):
        (tmp_path / "configs" / config.name).write_text(short(config))
    (tmp_path / "TAU").mkdir()
    for path in scenes_source.iterdir():
        (tmp_path / "TAU" / path.name).symlink_to(path)
    train = scenes_source / "evaluation_setup/fold1_train.csv"
    (tmp_path / "TAU/split5.csv").symlink_to(train)
    noise_folder(tmp_path / "recordings", files=10)
    shutil.copy(tmp_path / "recordings/hum/0.wav", tmp_path / "some-recording.wav")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


@pytest.fixture
def run_text(cli):
    """Runs a block of commands; those of cpprune in this process, which is quicker."""

    def run(text):
        commands = commands_of(text)
        if commands is None:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text], capture_output=True, text=True
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
            return
        for words in commands:
            outcome = cli(*words[1:])
            assert outcome.status == 0, f"{shlex.join(words)}\n{outcome.out}\n{outcome.err}"

    return run


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page, reader, run_text):
    names: dict[str, object] = {}
    for block in blocks_of(page.read_text()):
        for command in block.first:
            run_text(command)
        if block.skipped:
            continue
        if block.language == "python":
            exec(compile(block.text, str(page), "exec"), names)
        else:
            run_text(block.text)


def test_blocks_are_found():
    page = "\n".join(
        [
            *("# Title", "```bash", "cpprune info", "```", "text", "```text", "output", "```"),
            *("<!-- test: first cpprune a -->", "<!-- test: skip needs a GPU -->"),
            *("```console", "$ cpprune b", "output", "```", ""),
        ]
    )
    assert blocks_of(page) == [
        Block("bash", "cpprune info\n", False, []),
        Block("console", "cpprune b\n", True, ["cpprune a"]),
    ]
    for wrong in (
        page.replace("needs a GPU", "it fails"),
        page.replace("skip", "skp"),
        page.replace("```text\noutput", "```\ncpprune info"),
        page.replace("GPU -->\n", "GPU -->\n\n"),
    ):
        with pytest.raises(AssertionError):
            blocks_of(wrong)


def test_commands_are_told_from_shell():
    assert commands_of('cpprune a "b<=1" \\\n  --c [1, 2]  # why\n\ncpprune d\n') == [
        ["cpprune", "a", "b<=1", "--c", "[1,", "2]"],
        ["cpprune", "d"],
    ]
    for text in (
        "cpprune a runs/*",
        "cpprune a > b",
        "cd x && cpprune a",
        "make test",
        "cat <<'END'\ncpprune\nEND",
    ):
        assert commands_of(text) is None


def test_the_map_of_the_modules_is_up_to_date():
    module_map = runpy.run_path(str(REPOSITORY / "docs/map.py"))
    page = (REPOSITORY / "CONTRIBUTING.md").read_text()
    assert page == module_map["with_map"](page), "run `make pages`"
    for top in ("cpprune", "shards"):
        modules = [path for path in (REPOSITORY / top).rglob("*.py") if path.stem != "__init__"]
        assert all(f"\n- `{path.name}`: " in page for path in modules)
        assert all(module_map["first_line"](path) for path in modules), "a module has no docstring"


def test_paths_on_the_pages_exist():
    name = re.compile(r"`((?:benchmarks|configs|cpprune|launch|shards|slurm|tests)/[\w./-]*)[` ]")
    for page in PAGES:
        for path in name.findall(page.read_text()):
            assert "NAME" in path or (REPOSITORY / path).exists(), f"{page.name} names {path}"


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 150
