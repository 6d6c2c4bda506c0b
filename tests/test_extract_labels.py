from __future__ import annotations

import unicodedata
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextvlad.errors import UsageError
from nextvlad.extract_labels import Row, kinetics_stems, labels_of, read_table


def rows(folder: Path, text: str | bytes, **options: str) -> list[Row]:
    path = folder / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(path, **options)[0]


def test_without_a_header(tmp_path: Path) -> None:
    found = rows(tmp_path, 'a.mp4,dog;barking\n\n# a comment\n"b, c.mp4", cat \nd.mp4,\n')
    assert [(row.video, row.labels) for row in found] == [
        ("a.mp4", ("dog", "barking")),
        ("b, c.mp4", ("cat",)),
        ("d.mp4", ()),
    ]
    assert found[1].where == f"{tmp_path / 'labels.csv'}, line 4"
    assert found[0].split is found[0].group is found[0].start_seconds is None


@pytest.mark.parametrize("header", ["path,labels", "FileName, Label", "label,video", "tags,file"])
def test_columns_go_by_their_names(header: str, tmp_path: Path) -> None:
    first = "dog,a.mp4" if header.startswith(("label", "tags")) else "a.mp4,dog"
    assert [(row.video, row.labels) for row in rows(tmp_path, f"{header}\n{first}\n")] == [
        ("a.mp4", ("dog",))
    ]


def test_all_columns(tmp_path: Path) -> None:
    text = (
        "video_id,path,labels,split,group,start,end,fps\n"
        "x,a.mp4,dog,Validation,tape 1,1.5,1:02:03.5,25\n"
        "y,b.mp4,cat,train,,,,25\n"
    )
    path = tmp_path / "labels.csv"
    path.write_text(text)
    found, unused = read_table(path)
    where = f"{path}, line 2"
    assert found[0] == Row(where, "a.mp4", ("dog",), "valid", "tape 1", "x", 1.5, 3723.5)
    assert found[1].group is None
    assert unused == ["fps"]


def test_columns_by_the_users_names(tmp_path: Path) -> None:
    text = "path,labels,split,Fold,tape\na.mp4,dog,train,test,7\n"
    (row,) = rows(tmp_path, text, split_column="fold", group_column="tape")
    assert (row.split, row.group) == ("test", "7")


KINETICS = {
    "400": "label,youtube_id,time_start,time_end,split,is_cc\nabseiling,_x-1,20,30,train,0\n",
    "600": "label,youtube_id,time_start,time_end,split\nabseiling,_x-1,20,30,val\n",
    "700": "label,youtube_id,time_start,time_end,split\nabseiling,_x-1,20.0,30.0,validate\n",
    "test": "youtube_id,time_start,time_end,split\n_x-1,20,30,test\n",
}


@pytest.mark.parametrize("flavour", KINETICS)
def test_kinetics(flavour: str, tmp_path: Path) -> None:
    (row,) = rows(tmp_path, KINETICS[flavour])
    assert row.is_kinetics
    assert row.labels == (() if flavour == "test" else ("abseiling",))
    assert row.split == {"400": "train", "test": "test"}.get(flavour, "valid")
    assert (row.video, row.group, row.video_id) == ("_x-1", "_x-1", "_x-1_000020_000030")
    assert (row.start_seconds, row.end_seconds) == (20, 30)
    assert kinetics_stems(row) == ("_x-1_000020_000030", "_x-1_20_30")


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("", {}, "no lines"),
        ("path,labels\n", {}, "no rows below it"),
        (f"path,labels,start\na.mp4,dog,{'9' * 400}\n", {}, "line 2: time inf seconds"),
        ("path,labels,end\na.mp4,dog,99999999999999999999\n", {}, "line 2: time 1e\\+20 seconds"),
        ("a.mp4\n", {}, "1 column, wanted two"),
        ("a.mp4\tdog\n", {}, "parted by something else"),
        ("a.mp4,dog,train\n", {}, "3 columns.*More columns need a header"),
        (",dog\n", {}, "line 1: no path"),
        ("path,labels\na.mp4,dog,x\n", {}, "line 2: 3 columns, the header has 2"),
        ("path,colour\na.mp4,red\n", {}, "no column of labels.*path, colour"),
        ("path,labels,labels\na.mp4,x,y\n", {}, "two columns are called 'labels'"),
        (
            "path,labels\na.mp4,dog\n",
            {"split_column": "fold"},
            "--split-column fold: no such column.*path, labels",
        ),
        ("a.mp4,dog\n", {"group_column": "tape"}, "--group-column tape, but the first line names no columns"),
        ("path,labels,split\na.mp4,dog,holdout\n", {}, "line 2: split 'holdout', wanted train"),
        ("path,labels,start,end\na.mp4,dog,5,4\n", {}, "from second 5 to 4"),
        ("path,labels,start\na.mp4,dog,soon\n", {}, "time 'soon', wanted seconds"),
        ("path,labels,start\na.mp4,dog,-3\n", {}, "time '-3'"),
        ("youtube_id,label\nx,dog\n", {}, "not time_start and time_end"),
        ("youtube_id,label,time_start,time_end\nx,dog,,\n", {}, "no time_start"),
        ('path,labels\n"a.mp4,dog\n', {}, "not valid CSV"),
        ("path,labels\na\0.mp4,dog\n", {}, "NUL"),
        (
            "path,labels\na.mp4,dog\nb.mp4,Stra\xdfe\n".encode("latin-1"),
            {},
            "line 3: not UTF-8 text.*CSV UTF-8",
        ),
        ("path,labels\na.mp4,dog\n".encode("utf-16"), {}, "line 1: UTF-16 text"),
    ],
)
def test_tables_that_cannot_be_used(
    text: str | bytes, options: dict[str, str], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"(?s)labels.csv.*{reason}"):
        rows(tmp_path, text, **options)


def test_no_such_table(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_table(tmp_path / "none.csv")


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    assert rows(tmp_path, "\ufeffpath,labels\na.mp4,dog\n")[0].video == "a.mp4"


_LABEL = (
    st.text(st.characters(codec="utf-8", exclude_characters=";\0"), min_size=1)
    .map(lambda text: unicodedata.normalize("NFC", text).strip())
    .filter(lambda text: text and ";" not in text)  # the Greek question mark becomes one
)


@given(st.lists(_LABEL, unique=True))
def test_labels_of_a_cell(labels: list[str]) -> None:
    assert labels_of(";".join(labels)) == tuple(labels)
    assert labels_of(" ; ".join([*labels, *labels])) == tuple(labels)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(content)
    with suppress(UsageError):  # and nothing else
        read_table(path)


def test_a_label_with_accents_has_one_spelling() -> None:
    assert labels_of("caf\xe9;cafe\u0301") == ("caf\xe9",)
