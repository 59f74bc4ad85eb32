"""What a user reads of an error: what is wrong, where, and what to do about it."""

import errno
import importlib
import os
from pathlib import Path

import pytest

from models.cache import cache_folder
from models.errors import (
    BrokenFileError,
    ConfigError,
    RowError,
    UserError,
    causes,
    needs,
    rows_from,
    suggestion,
)
from models.os_errors import REMEDIES, in_words, reason, require_end


def test_a_row_is_counted_from_one_and_from_the_beginning_of_the_file() -> None:
    with (
        pytest.raises(RowError, match=r"^column 'age': row 1003 is empty$") as caught,
        rows_from(1000),
    ):
        raise RowError(2, "is empty", "age")
    assert (caught.value.row, caught.value.column) == (1002, "age")
    with pytest.raises(RowError, match=r"^row 3 is too long$"):
        raise RowError(2, "is too long")


def test_a_broken_file_is_told_in_one_line() -> None:
    told = str(BrokenFileError(Path("a/b"), "not\n what   was\texpected", "make it anew"))
    assert told == "a/b: broken (not what was expected); make it anew"


@pytest.mark.parametrize(
    ("word", "known", "says"),
    [
        ("stepz", ["steps", "seed"], "; did you mean 'steps'?"),
        ("step", ["steps", "stepping"], "; did you mean 'steps'?"),  # the nearest
        ("abcd", ["abxy", "zzzz"], "; did you mean 'abxy'?"),  # half of the letters are enough
        ("abcd", ["axyz"], "; there are: axyz"),
        ("x", ["one", "two"], "; there are: one, two"),
        ("x", [], "; there are none"),
    ],
)
def test_an_unknown_word_names_what_may_be_meant(word: str, known: list[str], says: str) -> None:
    assert suggestion(word, known) == suggestion(word, iter(known)) == says


def test_a_package_that_is_missing_is_told_by_what_installs_it() -> None:
    told = r"^absent is not installed, and is needed here: pip install 'wgan-foundry\[service\]'$"
    with pytest.raises(UserError, match=told), needs("service"):
        importlib.import_module("absent.part")
    with pytest.raises(ModuleNotFoundError, match=r"models\.absent"), needs("service"):
        importlib.import_module("models.absent")


def test_what_an_error_came_from_is_followed_to_the_first() -> None:
    first, handling, told = KeyError("first"), ValueError("while that was handled"), UserError()
    handling.__context__ = first
    told.__cause__, told.__context__ = handling, OSError("in another's place")
    assert list(causes(told)) == [told, handling, first]
    assert list(causes(None)) == []


# ---- of the operating system --------------------------------------------------------------------


LESS = "ask for less at once, or end others"


def of_system(number: int, *place: str) -> OSError:
    return OSError(number, os.strerror(number), *place)


@pytest.mark.parametrize("number", REMEDIES, ids=errno.errorcode.get)
def test_each_error_that_has_a_remedy_tells_it(number: int) -> None:
    error = of_system(number, "/a/Place")
    text = os.strerror(number)
    said = f"{text[0].lower()}{text[1:]}; {REMEDIES[number]}"
    assert reason(error) == said
    assert in_words(error) == f"/a/Place: {said}"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (of_system(errno.EIO), "input/output error"),
        (OSError("Some Library failed"), "some Library failed"),
        (OSError(), "OSError"),
        (MemoryError(), f"there is not enough memory; {LESS}"),
        (MemoryError("2 GiB"), f"there is not enough memory (2 GiB); {LESS}"),
    ],
)
def test_what_is_not_known_of_an_error_is_left_out(error: OSError | MemoryError, says: str) -> None:
    assert in_words(error) == says


def test_a_device_without_an_end_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert require_end(tmp_path / "file") == tmp_path / "file"
    os.mkfifo(tmp_path / "pipe")
    assert require_end(tmp_path / "pipe") == tmp_path / "pipe"
    with pytest.raises(OSError, match="Is a device, not a file: '/dev/zero'"):
        require_end(Path("/dev/zero"))
    with pytest.raises(FileNotFoundError):
        require_end(tmp_path / "none")


# ---- of places ----------------------------------------------------------------------------------


def test_the_cache_is_where_the_environment_names_it_or_in_the_user_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("WGAN_CACHE", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")):
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path("/a")
    monkeypatch.setenv("WGAN_CACHE", "")
    assert cache_folder() == Path("/b/wgan-foundry")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/c/.cache/wgan-foundry")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # as in a container: a user with no name
    with pytest.raises(ConfigError, match="no home folder to cache in; set WGAN_CACHE"):
        cache_folder()
