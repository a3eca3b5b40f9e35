"""A listing is read as it comes, in whatever pieces, and what is none is never an empty one."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gcd.artifacts.proxy_listing import LONGEST, Entry, entries

names = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1)
found = st.lists(st.builds(Entry, names, st.booleans(), st.integers(0, 2**63)))


def as_json(listed: list[Entry], indent: int | None, *, ascii_only: bool) -> bytes:
    files = [
        {"path": e.name, "is_dir": e.is_folder, **({} if e.is_folder else {"file_size": e.size})}
        for e in listed
    ]
    body = {"root_uri": "x", "files": files, "more": [1, {"a": None}]} if files else {}
    return json.dumps(body, indent=indent, ensure_ascii=ascii_only).encode()


@given(found, st.sampled_from([None, 2]), st.booleans(), st.lists(st.integers(1, 40), min_size=1))
def test_it_is_the_same_in_whatever_pieces(
    listed: list[Entry], indent: int | None, ascii_only: bool, cuts: list[int]
) -> None:
    data, at, pieces = as_json(listed, indent, ascii_only=ascii_only), 0, []
    while at < len(data):
        size = cuts[len(pieces) % len(cuts)]
        pieces.append(data[at : at + size])
        at += size
    expected = [Entry(e.name, e.is_folder, 0 if e.is_folder else e.size) for e in listed]
    assert list(entries(pieces)) == expected


@given(found.filter(bool), st.data())
def test_a_part_of_it_is_none(listed: list[Entry], data: st.DataObject) -> None:
    whole = as_json(listed, 2, ascii_only=True)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError, match=r"."):
        list(entries([whole[:cut]]))


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "{", "}", "[]", "null", '"x"', "{}x", "{}{}", "<html></html>", '{"files"}'),
        *('{"files": {}}', '{"files": [1]}', '{"files": [{}]}', '{"files": [{"path": 1}]}'),
        *('{"files": [{"path": "a/b"}]}', '{"files": [{"path": "a", "is_dir": "yes"}]}'),
        *('{"files": [{"path": "a", "file_size": "many"}]}', '{"files": [,]}', '{"files": []'),
        '{"files": [{"path": "a", "file_size": []}]}',
    ],
)
def test_anything_else_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        list(entries([text.encode()]))


def test_what_is_no_unicode_is_none() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        list(entries([b'{"files": [{"path": "\xff"}]}']))


@pytest.mark.parametrize("text", ["{}", " {\n} \n", '{"files": []}', '{"root_uri": "x"}'])
def test_a_listing_may_be_empty(text: str) -> None:
    assert list(entries([text.encode()])) == []


def test_a_long_listing_is_never_whole_in_memory() -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"files": ['
        for number in range(40_000):
            yield b'%s{"path": "%d", "file_size": 1}' % (b"," if number else b"", number)
        yield b"]}"

    tracemalloc.start()
    try:
        assert sum(each.size for each in entries(pieces())) == 40_000
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


def test_an_entry_without_an_end_is_not_read_for_ever() -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"files": [{"path": "'
        for _ in range(2 * LONGEST // 65536):
            yield b"x" * 65536
        raise AssertionError("read on")

    with pytest.raises(ValueError, match="no end"):
        list(entries(pieces()))
