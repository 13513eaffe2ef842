"""What a mistyped key is answered with."""

from __future__ import annotations

import pytest

from gal_d2.errors import UserError
from gal_d2.setup.configuration import load_config


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("GAL.ACEPT.POLICY", "GAL.ACCEPT.POLICY"),  # a letter is missing
        ("GAL.SCORER.MOMENTUN", "GAL.SCORER.MOMENTUM"),
        ("GAL.SCORER.POLICY", "GAL.ACCEPT.POLICY"),  # in another place
        ("GAL.PROBE.FRACTION", "GAL.SCORER.PROBE.FRACTION"),
        ("GAL.COPY_PASTE.MAX_PASTE", "GAL.COPY_PASTE.MAX_PASTES"),
    ],
)
def test_the_nearest_key_is_named(key, meant, tmp_path):
    with pytest.raises(UserError, match=rf"did you mean {meant}\?"):
        load_config("", [key, "1"])
    # In a file the first part that is unknown is what is complained of, and that may be a node.
    *nodes, name = key.split(".")
    lines = [f"{'  ' * depth}{node}:" for depth, node in enumerate(nodes)]
    (tmp_path / "c.yaml").write_text("\n".join(lines) + f"\n{'  ' * len(nodes)}{name}: 1\n")
    with pytest.raises(UserError, match=r"c\.yaml: .*\(did you mean GAL\."):
        load_config(str(tmp_path / "c.yaml"))


def test_nothing_is_suggested_for_what_is_like_no_key():
    with pytest.raises(UserError) as found:
        load_config("", ["QWERTZ", "1"])
    assert "did you mean" not in str(found.value)
