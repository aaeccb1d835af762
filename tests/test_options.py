from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from stn.errors import InputError
from stn.options import check_output, make_output, parse, parser


@dataclass(frozen=True)
class Some:
    source: str = field(metadata={"help": "what is read"})
    topk: int = field(default=5, metadata={"help": "how many"})
    crop: Literal["center"] | None = field(default=None, metadata={"help": "how"})
    overwrite: bool = field(default=False, metadata={"help": "whether"})


def test_options_are_typed_and_the_rest_is_left() -> None:
    options, others = parse(Some, ["source=a b/c.png", "data.root=x", "topk=3", "crop=center", "overwrite=true"])
    assert options == Some("a b/c.png", 3, "center", True) and others == ["data.root=x"]
    for path in ("0123", "photo (1).jpg", "photos/[ab]*.png", "a, b.png", "true", "a=b"):
        assert parse(Some, [f"source={path}"])[0].source == path
    assert parse(Some, ["source='a b'"])[0].source == "a b"
    assert parse(Some, ["source=~/photos"])[0].source == str(Path.home() / "photos")


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ([], "source=… is missing: what is read"),
        (["source=a", "topk=many"], "topk=many must be a whole number"),
        (["source=a", "topk=1,2"], "topk=1,2 must be a whole number"),
        (["source=a", "crop=left"], "crop=left must be center or null"),
        (["source=a", "topk=1", "topk=2"], "topk is given twice: leave out one of the two"),
        (["source=a", "topk=[a"], "'topk=[a' is not understood; write topk=value, or quote the value"),
    ],
)
def test_a_wrong_option_is_one_sentence(texts: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        parse(Some, texts)
    assert str(error.value) == sentence


def test_help_lists_the_options_with_their_defaults_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser("stn.some", "python -m stn.some: does something.\n\npython -m stn.some latest\n", Some).parse_args(
            ["--help"]
        )
    said = capsys.readouterr().out
    assert "topk=…         how many (default: 5)" in said and "  python -m stn.some latest\n" in said


def test_a_command_that_begins_with_no_run_takes_words_of_its_own() -> None:
    found = parser("stn.some", "python -m stn.some: does something.", Some, "a key of a file")
    assert found.parse_args(["source=a", "topk=3"]).words == ["source=a", "topk=3"]
    assert "a key of a file" in found.format_help() and "a run's folder" not in found.format_help()


def test_nothing_is_written_over_unless_asked(tmp_path: Path) -> None:
    folder = make_output(tmp_path / "new" / "one", overwrite=False, mark="found.json")
    (folder / "found.json").touch()
    for function in (check_output, make_output):
        with pytest.raises(InputError, match="holds files already: set overwrite=true"):
            function(folder, overwrite=False, mark="found.json")
    check_output(folder, overwrite=True, mark="found.json")
    assert (folder / "found.json").exists()
    make_output(folder, overwrite=True, mark="found.json")
    assert not (folder / "found.json").exists()


@pytest.mark.parametrize("names", [["photo.jpg"], ["found.json", "config.yaml"]])
def test_a_folder_that_the_command_did_not_write_is_never_deleted(names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"is not what this command wrote, with found\.json"):
        make_output(tmp_path, overwrite=True, mark="found.json")
    with pytest.raises(InputError, match="is a file: give a folder"):
        make_output(tmp_path / names[0], overwrite=True, mark="found.json")
    assert all((tmp_path / name).exists() for name in names)
