"""The file of API keys: read again when it changes, and told of when it has a mistake."""

import hashlib
import os
import resource
from pathlib import Path

import pytest

from models.errors import ConfigError
from service.keys import Forbidden, Key, Keys, Unauthorized, allow, read_keys
from tests.attacks import line
from tests.test_machine import limited


def test_a_changed_file_of_keys_is_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    path.write_text(line("a", "1", "samples") + line("a", "1", "scores"))
    keys = Keys(path)
    assert keys.authenticate(authorization("bearer 1")) == Key(
        "a", hashlib.sha256(b"1").digest(), frozenset({"samples", "scores"})
    )
    assert not keys.metrics_need_one()
    (tmp_path / "new").write_text(line("b", "2", "metrics"))
    (tmp_path / "new").replace(path)
    with pytest.raises(Unauthorized):
        keys.authenticate(authorization("Bearer 1"))
    key = keys.authenticate(authorization("Bearer 2"))
    assert keys.metrics_need_one()
    with pytest.raises(Forbidden, match="samples"):
        allow(key, "samples")
    for content in ("half a li", "", "# all keys are gone\n"):  # a mistake locks nobody out
        path.write_text(content)
        caplog.clear()
        assert keys.authenticate(authorization("Bearer 2")) == key
        assert "the keys stay as they were (1)" in caplog.text
    path.unlink()
    assert keys.authenticate(authorization("Bearer 2")) == key
    with pytest.raises(Unauthorized):  # but nobody is let in by a file that was never there
        Keys(path).authenticate(authorization("Bearer 2"))
    assert Keys(None).authenticate([]) is None


def test_a_file_that_could_not_be_opened_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(line("a", "1", "samples"))
    keys = Keys(path)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    with limited(resource.RLIMIT_NOFILE, lowest_free), pytest.raises(Unauthorized):
        keys.authenticate(authorization("Bearer 1"))
    assert keys.authenticate(authorization("Bearer 1"))


def authorization(*values: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", value.encode("latin-1")) for value in values]


@pytest.mark.parametrize("sent", ["", "Bearer", "Bearer ", "bearer   "])
def test_an_empty_key_opens_nothing(tmp_path: Path, sent: str) -> None:
    path = tmp_path / "keys"
    path.write_text(line("a", "1", "samples"))
    keys = Keys(path)
    keys.current()
    path.write_text(line("a", "1", "samples") + line("b", "", "samples"))
    with pytest.raises(ConfigError, match="line 2: this is the SHA-256 of an empty key"):
        read_keys(path)
    with pytest.raises(Unauthorized):
        keys.authenticate(authorization(sent))


@pytest.mark.parametrize(
    "sent", [["Basic 1"], ["Bearer 1", "Bearer 1"], ["Bearer 1", "Basic 2"], []]
)
def test_only_one_header_with_a_bearer_s_key_opens(tmp_path: Path, sent: list[str]) -> None:
    path = tmp_path / "keys"
    path.write_text(line("a", "1", "samples"))
    with pytest.raises(Unauthorized):
        Keys(path).authenticate(authorization(*sent))


def test_a_key_may_do_what_its_scopes_say_and_without_keys_anybody_may(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(line("a", "1", "samples"))
    keys = Keys(path)
    allow(None, "samples")
    allow(keys.authenticate(authorization("Bearer 1")), "samples")
    paths = "/v1/samples", "/metrics", "/livez"
    assert [Keys(None).is_needed(path) for path in paths] == [False, False, False]
    assert [keys.is_needed(path) for path in paths] == [True, False, False]
    path.write_text(line("a", "1", "samples") + line("b", "2", "metrics"))
    assert [keys.is_needed(path) for path in paths] == [True, True, False]


def test_a_mark_of_the_encoding_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\ufeff" + line("a", "1", "samples"), "utf-8")
    assert [key.name for key in read_keys(tmp_path / "keys")] == ["a"]


def test_the_log_says_whether_keys_are_needed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "wgan.service")
    Keys(None).announce()
    assert "no API keys: anybody may ask" in caplog.text
    path = tmp_path / "keys"
    path.write_text(line("a", "1", "samples") + line("b", "2", ""))
    Keys(path).announce()
    assert f"API keys are needed: 2 are in {path}" in caplog.text


@pytest.mark.parametrize(
    "content",
    ["a", "a:b:c", f"a:{'0' * 63}:", f"a:{'0' * 64}:all", f"ä:{'0' * 64}:", "a:key:samples"],
)
def test_a_mistake_in_a_file_of_keys_is_told_without_its_content(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "keys").write_text("# keys\n" + content)
    with pytest.raises(ConfigError, match="line 2: write name:sha256hex:scopes") as caught:
        read_keys(tmp_path / "keys")
    assert "key:samples" not in str(caught.value)
