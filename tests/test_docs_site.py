"""The site that `make docs` builds: whole, and without anything from another server."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


class Fetched(HTMLParser):
    """Collects what a browser would fetch for a page by itself."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(given.get("src") or "")
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(given.get("href") or "")


def build(out, *, docs=None):
    # Whoever asks another server is refused.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", out]
    if docs is not None:
        config = docs.parent / "mkdocs.yml"
        shutil.copy(REPOSITORY / "mkdocs.yml", config)
        command += ["--config-file", config]
    environment = {
        **os.environ,
        **nowhere,
        "NO_MKDOCS_2_WARNING": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_site(tmp_path):
    done = build(tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = sorted((tmp_path / "site").rglob("index.html"))
    names = {path.parent.name for path in pages} | {"index"}
    assert names >= {path.stem for path in (REPOSITORY / "docs").glob("*.md")}
    for page in pages:
        reader = Fetched()
        reader.feed(page.read_text())
        assert reader.addresses
        assert [a for a in reader.addresses if re.match(r"(https?:)?//", a)] == [], page
    api = (tmp_path / "site/api/index.html").read_text()
    for name in ("cpprune.load", "cpprune.train", "shards.reader.Dataset.fetch"):
        assert f'id="{name}"' in api


@pytest.mark.slow
def test_a_dead_link_ends_the_build_and_a_page_outside_the_menu_does_not(tmp_path):
    docs = tmp_path / "docs"
    shutil.copytree(REPOSITORY / "docs", docs)
    (docs / "api.md").write_text("# API\n")
    (docs / "more.md").write_text("# More\n\n[there](index.md)\n")
    done = build(tmp_path / "site", docs=docs)
    assert done.returncode == 0, done.stderr
    (docs / "more.md").write_text("# More\n\n[nowhere](missing.md)\n")
    done = build(tmp_path / "site", docs=docs)
    assert done.returncode != 0
    assert "missing.md" in done.stderr
