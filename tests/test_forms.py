"""Files in requests: parts of a form, or a body of rows."""

import asyncio
from typing import Any

import httpx
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from service.forms import FORM, FORM_PIECE, MAX_FILES, in_pieces, read_upload
from service.problems import BadRequest

Read = tuple[list[tuple[str, bytes]], dict[str, list[str]]]


def read(kind: str, texts: tuple[str, ...] = ("classes", "resize"), **sent: Any) -> Read:
    """What is read of a request, as httpx makes it."""
    request = httpx.Request("POST", "http://test/", **sent)
    body = request.read()

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(k.lower().encode(), v.encode()) for k, v in request.headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    return asyncio.run(read_upload(Request(scope, receive), kind, texts, 3))


def parts(*names: str) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (name, name.encode())) for name in names]


def test_files_keep_their_order_and_their_names_for_messages() -> None:
    sent = {"classes": ["a", "b"], "resize": "true"}
    files, texts = read(FORM, files=parts("one.png", "two" + "o" * 200), data=sent)
    assert files[0] == ("file 0 (one.png)", b"one.png")
    assert files[1] == (f"file 1 (two{'o' * 97})", b"two" + b"o" * 200)
    assert len(files) == 2
    assert texts == {"classes": ["a", "b"], "resize": ["true"]}


def test_a_body_of_rows_is_one_file_without_texts() -> None:
    assert read("text/csv", content=b"a,b\n1,2\n") == (
        [("the body", b"a,b\n1,2\n")],
        {"classes": [], "resize": []},
    )


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ({"files": [*parts("a"), ("other", ("b", b"b"))]}, "'files', and if need be 'classes' and"),
        ({"files": parts("a"), "data": {"seed": "1"}}, "the rest is in the query"),
        ({"files": [("classes", (None, b"a"))]}, "send the files as parts named 'files'"),
        ({"files": [*parts("a"), ("files", (None, b"text"))]}, "each with a file name"),
        ({"files": [*parts("a"), ("classes", ("a", b"b"))]}, "'classes' are text, without a file"),
    ],
)
def test_other_parts_are_refused(sent: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        read(FORM, **sent)


def test_without_texts_none_are_offered() -> None:
    with pytest.raises(BadRequest, match=r"^the form's parts are 'files'; the rest"):
        read(FORM, (), files=parts("a"), data={"classes": "a"})


def test_parts_are_bounded() -> None:
    files, texts = read(FORM, files=parts(*["a"] * MAX_FILES), data={"classes": ["a"] * 3})
    assert (len(files), len(texts["classes"])) == (256, 3)
    with pytest.raises(HTTPException, match="Too many files") as caught:
        read(FORM, files=parts(*["a"] * (MAX_FILES + 1)))
    assert caught.value.status_code == 400
    with pytest.raises(HTTPException, match="Too many fields") as caught:
        read(FORM, files=parts("a"), data={"classes": ["a"] * 4})
    assert caught.value.status_code == 400


def test_a_broken_form_is_400() -> None:
    headers = {"content-type": f"{FORM}; boundary=x"}
    with pytest.raises(HTTPException) as caught:
        read(FORM, content=b"no form", headers=headers)
    assert caught.value.status_code == 400


@pytest.mark.parametrize("size", [0, 1, FORM_PIECE, FORM_PIECE + 1, 3 * FORM_PIECE])
def test_a_body_comes_in_pieces_with_turns_for_others_between_them(size: int) -> None:
    body, turns = bytes(size), list[int]()

    async def pieces() -> list[bytes]:
        loop, found = asyncio.get_running_loop(), []
        async for piece in in_pieces(body):
            found.append(piece)
            assert len(turns) == len(found) - 1, "others have had a turn since the last one"
            loop.call_soon(turns.append, len(found))
        return found

    found = asyncio.run(pieces())
    assert b"".join(found) == body
    assert FORM_PIECE == 2**16
    assert all(0 < len(piece) <= FORM_PIECE for piece in found)
