from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import shared_path
from nextvlad.data.vocabulary import Vocabulary
from nextvlad.errors import ConfigError, OutputError

YOUTUBE8M = (
    "Index,TrainVideoCount,KnowledgeGraphId,Name,WikiUrl,Vertical1,Vertical2,Vertical3,WikiDescription\n"
    '1,539945,/m/01mw1,"Video, game",https://x,Games,,,"Two\nlines, ""quoted"""\n'
    "0,788288,/m/03bt1gh,Game,https://x,Games,,,\n"
    "2,3,/m/0dxrf,,,,,,\n"
)


def load(tmp_path: Path, content: str | bytes) -> Vocabulary:
    path = tmp_path / "names.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Vocabulary.load(path)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (YOUTUBE8M, ("Game", "Video, game", "/m/0dxrf")),
        (
            'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n',
            ("Speech", "Male speech, man speaking"),
        ),
        ("index,name\r\n1,b\r\n\r\n0,a\r\n", ("a", "b")),
        ("name,index\nb,1\na,0\n", ("a", "b")),
        ('0,a\n1,"b ""c"", d"\n', ("a", 'b "c", d')),
        (b"\xef\xbb\xbfindex,name\n0,\xc3\xa9t\xc3\xa9\n", ("été",)),
        (
            'salsa dance\nMale speech, man speaking\n5" vinyl\n\n',
            ("salsa dance", "Male speech, man speaking", '5" vinyl'),
        ),
        ("one", ("one",)),
    ],
)
def test_formats(tmp_path: Path, content: str | bytes, names: tuple[str, ...]) -> None:
    assert load(tmp_path, content).names == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "index,name\n0,a\n2,b\n",
            "names.csv: no line for index 1; wanted each of 0 to 1 once for 2 classes",
        ),
        ("index,name\n0,a\n\n0,b\n", "names.csv, line 4: index 0 a second time \\('a' has it\\)"),
        ("index,name\n0,a\n-1,b\n", "names.csv, line 3: index '-1', wanted a number from 0 up"),
        ("index,name\n0,a\none,b\n", "line 3: index 'one'"),
        ("index,name\n0,a\n1\n", "names.csv, line 3: 1 columns, wanted an index and a name"),
        ("index,name\n0,\n", "names.csv, line 2: no name for index 0"),
        (YOUTUBE8M + "1,,,x\n", "names.csv, line 6: index 1 a second time"),
        ("a\n\nb\n", "names.csv, line 2: empty, wanted one class name a line"),
        ("", "names.csv: no classes in it"),
        ("index,name\n", "names.csv: no classes in it"),
        (b"caf\xe9\n", "names.csv: not UTF-8 text .* at byte 3"),
        ('index,name\n0,a\n1,"b\n2,c\n', "line 3: not valid CSV .* Is a quotation mark not closed"),
        ("index,name\n0," + "x" * 200_000 + "\n", "names.csv, line 2: not valid CSV"),
        ("path,labels\na.mp4,dog;cat\n", "a table of videos \\(path,labels\\), wanted class names"),
        ("label,youtube_id,time_start,time_end,split\ndog,a,0,1,train\n", "a table of videos"),
    ],
)
def test_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, content)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.csv: cannot be read \(No such file"):
        Vocabulary.load(tmp_path / "nowhere.csv")


def test_no_empty_names() -> None:
    for names in ((), ("a", "")):
        with pytest.raises(ConfigError, match="wanted at least one and none empty"):
            Vocabulary(names)


def test_look_up() -> None:
    vocabulary = Vocabulary(("cat", "dog", "jaguar", "jaguar"))
    assert len(vocabulary) == 4
    assert vocabulary[1] == "dog"
    assert vocabulary.index_of() == {"cat": 0, "dog": 1}


def test_wrong_length() -> None:
    vocabulary = Vocabulary(("cat", "dog"))
    vocabulary.check_size(2)
    with pytest.raises(ConfigError, match=r"names.csv: 2 classes, the model has 527. Give the vocabulary"):
        vocabulary.check_size(527, "names.csv")


@given(names=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=5).map(tuple))
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, names: tuple[str, ...]) -> None:
    path = tmp_path_factory.getbasetemp() / "saved.csv"
    Vocabulary(names).save(path)
    assert Vocabulary.load(path) == Vocabulary(names)


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        Vocabulary(("a",)).save(tmp_path)


def test_published_files() -> None:
    youtube8m = Vocabulary.load(shared_path("data/yt8m/vocabulary.csv"))
    assert len(youtube8m) == 3862
    assert youtube8m[1] == "Video game"
    audioset = Vocabulary.load(shared_path("data/audioset/class_labels_indices.csv"))
    assert len(audioset) == 527
    assert audioset[1] == "Male speech, man speaking"
    assert len(audioset.index_of()) == 527
