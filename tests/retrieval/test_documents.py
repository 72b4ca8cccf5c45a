"""Documents become passages that know where they begin."""

from pathlib import Path

import pytest

from moecl_jax.errors import UserError
from moecl_jax.retrieval.documents import passages_of

MANUAL = """\
# Setup
Install it.

Then run it.

## Faults
It may fail.
Read the log.
"""


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def shown(passages, folder):
    """Sources, less the folder, and texts."""
    return [(each.source.removeprefix(f"{folder}/"), each.text) for each in passages]


def test_headings_begin_passages_and_paragraphs_join(tmp_path):
    write(tmp_path, manual_md=MANUAL)
    expected = [
        ("manual.md:1", "# Setup\nInstall it.\n\nThen run it."),
        ("manual.md:6", "## Faults\nIt may fail.\nRead the log."),
    ]
    assert shown(passages_of(tmp_path), tmp_path) == expected
    assert shown(passages_of(tmp_path / "manual.md"), tmp_path) == expected


def test_what_is_too_long_is_parted(tmp_path):
    write(tmp_path, a_txt="One two. Three four five six.\n\nSeven.\n\n" + "x" * 25)
    assert shown(passages_of(tmp_path, longest=16), tmp_path) == [
        ("a.txt:1", "One two."),
        ("a.txt:1", "Three four five"),
        ("a.txt:1", "six.\n\nSeven."),
        ("a.txt:5", "x" * 16),
        ("a.txt:5", "x" * 9),
    ]


def test_a_piece_has_the_line_where_it_begins(tmp_path):
    write(tmp_path, a_txt="\x0c\nOne two.\r\nThree four.\rFive six.\n\n# Seven\x0c")
    assert shown(passages_of(tmp_path, longest=12), tmp_path) == [
        ("a.txt:2", "One two."),
        ("a.txt:3", "Three four."),
        ("a.txt:4", "Five six."),
        ("a.txt:6", "# Seven"),
    ]


def test_nothing_of_a_text_is_lost_or_too_long(tmp_path):
    text = "\n\n".join("word " * n + "end." for n in range(1, 60)) + "\n中文。没有空格。" * 40
    write(tmp_path, a_txt=text)
    passages = passages_of(tmp_path, longest=100)
    assert max(len(passage.text) for passage in passages) <= 100
    assert "".join("".join(p.text for p in passages).split()) == "".join(text.split())


def test_files_are_taken_in_order_and_others_left(tmp_path):
    write(
        tmp_path,
        b_md="b",
        a__z_TXT="z",
        a__b_markdown="m",
        c_py="no",
        **{"_hidden_md": "no", "_git__a_md": "no", "empty_md": " \n"},
    )
    found = [source for source, _ in shown(passages_of(tmp_path), tmp_path)]
    assert found == ["a/b.markdown:1", "a/z.TXT:1", "b.md:1"]


def test_a_source_is_the_file_as_the_place_names_it(tmp_path, monkeypatch):
    write(tmp_path, manual__a_md="one")
    monkeypatch.chdir(tmp_path)
    assert passages_of(Path("manual"))[0].source == "manual/a.md:1"
    assert passages_of(Path("manual/a.md"))[0].source == "manual/a.md:1"


def test_a_mistake_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no file that ends in"):
        passages_of(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        passages_of(tmp_path / "nothing")
    write(tmp_path, a_txt=b"\xff\xfeno")
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8"):
        passages_of(tmp_path)
