"""An ONNX file in a real browser, by onnxruntime-web: torch's logits there too."""

import functools
import http.server
import json
import shutil
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from chromium import headless_chromium
from export_jobs import clips_of, job_of
from programs import required

from cpprune.export.target import targets

pytestmark = pytest.mark.browser

RUNTIME = "onnxruntime-web@1.30.0"
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with onnxruntime-web and the page, and its address."""
    folder = tmp_path_factory.mktemp("site")
    npm = required("npm", "npm")
    subprocess.run([npm, "pack", "--silent", RUNTIME], cwd=folder, check=True)
    (packed,) = folder.glob("*.tgz")
    with tarfile.open(packed) as tar:
        for name in FILES:
            content = tar.extractfile(f"package/dist/{name}")
            assert content is not None
            (folder / name).write_bytes(content.read())
    shutil.copy(Path(__file__).with_name("web_page.html"), folder / "index.html")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with headless_chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_three_clips(exported, site, browser, precision):
    folder, address = site
    made = exported("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cpprune.export.network.export_network", lambda *_: made.network)
        product = targets()["onnx"].make(job_of(made.model, precision=precision))
    clips = clips_of(made.model, 3, seed=7)
    # Each precision by a name of its own: a file that changes twice within a second stays in the cache.
    (folder / f"{precision}.onnx").write_bytes(product.files[""])
    (folder / "clips.json").write_text(json.dumps((clips.float() / 32768).tolist()))
    browser.get(f"{address}?{precision}")
    end = time.monotonic() + 120
    while browser.title == "waiting" and time.monotonic() < end:
        time.sleep(0.1)
    assert browser.title == "done", browser.get_log("browser")
    found = np.array(browser.execute_script("return window.answers"))
    expected = made.model.logits(clips).numpy()
    same = product.exported.logits(clips).numpy()
    assert (found.argmax(1) == expected.argmax(1)).all()
    if precision == "fp32":
        np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(found, same, atol=1e-4 if precision != "int8" else 0.3)
