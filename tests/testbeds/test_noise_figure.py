from __future__ import annotations

import numpy as np
from PIL import Image

from gal_d2.testbeds.noise.figure import save_score_distributions


def test_a_panel_for_each_score(tmp_path):
    rng = np.random.default_rng(0)
    scores = {name: rng.normal(size=(2, 50)) for name in ("raw", "class", "third")}
    path = save_score_distributions(scores, (0.0, 0.5), tmp_path / "new" / "a.png", "title")
    three = Image.open(path).size
    del scores["third"]
    two = Image.open(save_score_distributions(scores, (0.0, 0.5), path, "title")).size
    assert three[0] == two[0] and three[1] > two[1]  # two panels a row
    assert path.stat().st_size < 200_000
