"""Names as file names; that they lead nowhere is in tests/test_security.py."""

from gal_d2.files.file_name import as_file_name


def test_letters_of_any_script_stay():
    assert as_file_name("pão de queijo (small)") == "pão_de_queijo_small"
