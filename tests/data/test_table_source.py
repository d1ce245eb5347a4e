# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of texts and images: formats, labels, and every bad row named."""

import json

import numpy as np
import pytest
from PIL import Image

from tl_jax.config import Data
from tl_jax.core.errors import UserError
from tl_jax.data.sources import table


def read(path, group=None, **options):
    return table.read(Data("table", path=str(path), group=group), table.Config(**options))


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_published_set(shared_data):
    """SST-2 with its quotes taken literally: 6920, 872 and 1821 sentences (as its README says)."""
    sets = read(shared_data / "text" / "sst2")
    assert {name: len(examples) for name, examples in sets.items()} == {"train": 6920, "validation": 872, "test": 1821}
    assert sets["train"].classes == ("0", "1") and sets["train"].kind == "text"
    assert sets["test"][0] == {"text": "no movement , no yuks , not much of anything"}
    assert sets["test"].keys[0] == "test.tsv:2" and sets["test"].labels[0] == 0


def test_tsv_takes_quotes_literally_and_csv_does_not(tmp_path):
    """A quoted CSV cell may hold the separator and a line break; keys name the line on which a record ends."""
    tsv = read(write(tmp_path / "a.tsv", 'text\tlabel\n"odd\tx\nb"\ty\n'))["all"]
    assert [tsv[i]["text"] for i in range(2)] == ['"odd', 'b"']
    csv = read(write(tmp_path / "a.csv", 'text,label\r\n"a, ""b""\nc",x\r\nd,y\r\n'))["all"]
    assert csv[0]["text"] == 'a, "b"\nc' and csv.keys == ["a.csv:3", "a.csv:4"]
    unquoted = read(tmp_path / "a.tsv", quoting=False)["all"]
    assert unquoted[0] == tsv[0]


def test_odd_separators_inside_a_text_survive(tmp_path):
    """Form feeds and Unicode line separators do not end a record."""
    examples = read(write(tmp_path / "a.tsv", "text\tlabel\na\x0cb\u2028c\tx\n\nd\ty\n"))["all"]
    assert examples[0]["text"] == "a\x0cb\u2028c" and examples.keys == ["a.tsv:2", "a.tsv:4"]


def test_byte_order_mark_is_no_part_of_the_header(tmp_path):
    """Files saved by spreadsheets begin with one."""
    assert len(read(write(tmp_path / "a.csv", b"\xef\xbb\xbftext,label\na,x\n"))["all"]) == 1


def test_integer_labels_in_numeric_order(tmp_path):
    """'10' comes after '9'."""
    examples = read(write(tmp_path / "a.tsv", "text\tlabel\na\t10\nb\t9\nc\t-1\n"))["all"]
    assert examples.classes == ("-1", "9", "10")
    np.testing.assert_array_equal(examples.labels, [2, 1, 0])


def test_jsonl(tmp_path):
    """Numbers and booleans may be labels; the columns are named by options."""
    records = [{"sentence": "a", "stars": 5}, {"stars": 1, "sentence": "b", "other": None}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, records)))
    examples = read(path, text="sentence", label="stars")["all"]
    assert examples.classes == ("1", "5") and examples[1] == {"text": "b"}


@pytest.mark.parametrize("name", ["a.tsv", "a.jsonl"])
def test_several_labels(tmp_path, name):
    """Separated labels become zeros and ones; an empty cell is a record of no class."""
    cells = [["x", "y"], [], ["y"]]
    if name == "a.tsv":
        content = "text\tlabel\n" + "".join(f"t\t{'|'.join(cell)}\n" for cell in cells)
    else:
        content = "\n".join(json.dumps({"text": "t", "label": cell}) for cell in cells)
    examples = read(write(tmp_path / name, content), separator="|")["all"]
    assert examples.multi_label and examples.labels.dtype == np.float32
    np.testing.assert_array_equal(examples.labels, [[1, 1], [0, 0], [0, 1]])


def test_fixed_classes_by_name_and_by_number(tmp_path):
    """Given class names keep their order; whole numbers may stand for them."""
    names = read(write(tmp_path / "a.tsv", "text\tlabel\na\tneg\nb\tpos\n"), classes=("pos", "neg"))["all"]
    numbers = read(write(tmp_path / "b.tsv", "text\tlabel\na\t1\nb\t0\n"), classes=("pos", "neg"))["all"]
    np.testing.assert_array_equal(names.labels, [1, 0])
    np.testing.assert_array_equal(numbers.labels, [1, 0])


@pytest.mark.parametrize("label", ["2", "-1", "maybe"])
def test_label_outside_of_fixed_classes_is_named(tmp_path, label):
    """Out of range, negative and unknown labels, with their line."""
    path = write(tmp_path / "a.tsv", f"text\tlabel\na\t1\nb\t{label}\n")
    with pytest.raises(UserError, match=f"a.tsv:3 has label '{label}'.*classes are pos, neg"):
        read(path, classes=("pos", "neg"))


@pytest.mark.parametrize(
    "content, told",
    [
        ("txt\tlabel\na\tx\n", "no column 'text'; did you mean 'txt'"),
        ("text\tlable\na\tx\n", "did you mean 'lable'"),
        ("text\tlabel\na\tx\nb\nc\tx\ty\n", "the header has 2 columns, line 3 has 1, line 4 has 3"),
        ("text\tlabel\n \tx\n", "a.tsv:2 has no text"),
        ("text\tlabel\na\t\nb\tx\n", "a.tsv:2 has no label"),
        ("text\ttext\na\tx\n", "more than one column 'text'"),
        ("text\tlabel\n", "holds no records"),
        ("", "holds no records"),
        (b"text\tlabel\n\xff\tx\n", "line 2 is not UTF-8"),
    ],
)
def test_bad_tsv(tmp_path, content, told):
    """Each mistake is told with its line."""
    with pytest.raises(UserError, match=told):
        read(write(tmp_path / "a.tsv", content))


@pytest.mark.parametrize(
    "content, told",
    [
        ('{"text": "a", "label": 1}\n[1]\nnot json\n', "line 2, line 3 is not a JSON object"),
        ('{"text": "a", "label": 0.5}', "a.jsonl:1 has label 0.5"),
        ('{"text": "a", "label": NaN}', "a.jsonl:1 has label nan"),
        ('{"text": "a", "label": ["x"]}', r"a.jsonl:1 has label \['x'\]"),
        ('{"text": 3, "label": "x"}', "a.jsonl:1 has no text"),
        ('{"text": "a", "label": "x"}\n{"label": "x"}', "a.jsonl:2 has no text"),
        ("[" * 100_000, "line 1 is not a JSON object"),
    ],
)
def test_bad_jsonl(tmp_path, content, told):
    """Each mistake is told with its line."""
    with pytest.raises(UserError, match=told):
        read(write(tmp_path / "a.jsonl", content))


def test_open_quote_is_told(tmp_path):
    """An unbalanced quote would swallow the rest of the file."""
    with pytest.raises(UserError, match="line 3: unexpected end of data. Mend the quotes"):
        read(write(tmp_path / "a.csv", 'text,label\n"a,x\nb,y\n'))


def test_class_absent_from_train(tmp_path):
    """A class that only the test set has cannot be learned."""
    write(tmp_path / "train.csv", "text,label\na,x\n")
    write(tmp_path / "test.csv", "text,label\na,x\nb,z\n")
    with pytest.raises(UserError, match="test.csv has classes that train lacks: 'z'"):
        read(tmp_path)


def test_two_files_for_a_split(tmp_path):
    """`dev` and `val` are the same split."""
    for name in ("train.csv", "dev.csv", "val.csv"):
        write(tmp_path / name, "text,label\na,x\n")
    with pytest.raises(UserError, match="dev.csv and val.csv are both the validation split"):
        read(tmp_path)


def test_folder_without_train(tmp_path):
    """The expected names are told."""
    with pytest.raises(UserError, match="no train.tsv"):
        read(tmp_path)


def test_group_column(tmp_path):
    """The group column is read, its absence and its holes are told."""
    path = write(tmp_path / "a.csv", "text,label,who\na,x,p\nb,x,q\n")
    assert read(path, group="who")["all"].groups == ["p", "q"]
    with pytest.raises(UserError, match="no column 'patient'"):
        read(path, group="patient")
    with pytest.raises(UserError, match="b.csv:2 has no who"):
        read(write(tmp_path / "b.csv", "text,label,who\na,x,\n"), group="who")


def test_images_beside_the_table(tmp_path):
    """An image column makes records of images; missing files and paths out of the folder are told."""
    (tmp_path / "data").mkdir()
    Image.new("RGB", (2, 3), (9, 8, 7)).save(tmp_path / "data" / "i.png")
    Image.new("RGB", (2, 3)).save(tmp_path / "out.png")
    path = write(tmp_path / "data" / "a.csv", "file,label\ni.png,x\n")
    examples = read(path, image="file")["all"]
    assert examples.kind == "image" and examples[0]["image"].shape == (3, 2, 3)
    for bad in ("none.png", "../out.png", str(tmp_path / "out.png")):
        with pytest.raises(UserError, match="bad.csv:2 names"):
            read(write(tmp_path / "data" / "bad.csv", f"file,label\n{bad},x\n"), image="file")


@pytest.mark.parametrize("name, content", [("a.txt", "one\r\ntwo"), ("a.tsv", "text\none\ntwo\n")])
def test_unlabelled(tmp_path, name, content):
    """A file of lines and a table without labels can be predicted."""
    examples = table.read_unlabelled(write(tmp_path / name, content), table.Config())
    assert [examples[i]["text"] for i in range(2)] == ["one", "two"] and examples.labels is None


def test_unlabelled_empty_line_is_told(tmp_path):
    """Leaving it out would shift every prediction by a line."""
    with pytest.raises(UserError, match="a.txt:2 has no text"):
        table.read_unlabelled(write(tmp_path / "a.txt", "one\n\ntwo\n"), table.Config())


def test_unknown_suffix(tmp_path):
    """What can be read is told."""
    with pytest.raises(UserError, match="is not a file of .tsv, .csv, .jsonl or .txt"):
        read(write(tmp_path / "a.parquet", "x"))
