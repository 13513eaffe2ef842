"""The page in a browser: keys store verdicts, and names from files are shown as text."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from serving import serving

from gal_d2.pool.verdicts import VerdictFile
from gal_d2.review.server import ReviewServer
from gal_d2.review.session import ReviewSession

BROWSER = os.environ.get("BROWSER_FOR_TESTS") or shutil.which("chromium")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--virtual-time-budget=15000",
]
# Waits for what is shown to change after each key, and then says in the page what there was.
KEYS = """
<script nonce="{{nonce}}">
(async () => {
  const shown = [], wait = async () => {
    while (busy || !items.length) await new Promise(done => setTimeout(done, 5));
    shown.push(items[0].pool_id);
  };
  await wait();
  for (const key of ["g", "B", "u", " ", "x", "c"]) {
    document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
    await wait();
  }
  document.dispatchEvent(new KeyboardEvent("keydown", {key: "b", ctrlKey: true, bubbles: true}));
  await wait();
  const end = document.createElement("pre");
  end.id = "end";
  end.textContent = [...shown, document.getElementById("stage").className,
                     document.querySelectorAll("h1 *, #about *").length, document.title].join("|");
  document.body.append(end);
})();
</script>
</body>"""


@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
def test_keys(pool, beliefs, tmp_path: Path):
    server = ReviewServer(ReviewSession(pool, beliefs, reviewer="ann"))
    server.page = server.page.replace("</body>", KEYS)
    with serving(server):
        command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom"]
        done = subprocess.run(
            [*command, server.address], capture_output=True, text=True, timeout=300
        )
    assert '<pre id="end">' in done.stdout, done.stderr[-2000:]
    end = done.stdout.split('<pre id="end">')[1].split("</pre>")[0].split("|")
    first, second, third, again, fourth, after_x, after_c, after_ctrl = end[:8]
    assert again == second and len({first, second, third}) == 3
    assert fourth == after_x == after_c == after_ctrl  # keys that mean nothing, or nothing to store
    assert end[8:] == ["white", "0", "Review of pool"]  # no markup came of names and prompts
    verdicts = VerdictFile(pool.root).read()
    said = [(str(v.pool_id), v.verdict) for v in verdicts]
    assert said == [(first, "good"), (second, "bad"), (second, "undo"), (second, "skip")]
