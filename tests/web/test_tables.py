"""What a reader may ask of the page's tables, and what is shown. Pure: no server, no clock."""

import pytest

from registry_cache.model.contents import Listed
from registry_cache.model.oci import Digest
from registry_cache.web.tables import ROWS, Asked, images_table, uses_table


def image(name, size=1, used=0.0, checked=0.0, pinned=False):
    return Listed(name, Digest(f"sha256:{name.encode().hex():0<64}"[:71]), size, used, pinned, checked)


IMAGES = [image("alpine:3", 3, 10, 30), image("nginx:1", 9, 30, 10, pinned=True), image("node:22", 5, 20, 20)]


def names(table):
    return [one.name for one in table.rows]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("name", ["alpine:3", "nginx:1", "node:22"]),
        ("-name", ["node:22", "nginx:1", "alpine:3"]),
        ("size", ["nginx:1", "node:22", "alpine:3"]),
        ("-size", ["alpine:3", "node:22", "nginx:1"]),
        ("used", ["nginx:1", "node:22", "alpine:3"]),
        ("checked", ["alpine:3", "node:22", "nginx:1"]),
        ("pinned", ["nginx:1", "alpine:3", "node:22"]),
    ],
)
def test_images_are_sorted_by_any_column_both_ways(order, expected):
    assert names(images_table(IMAGES, Asked.parse({"images": order}))) == expected


def test_a_heading_says_how_the_table_is_sorted_and_a_second_press_turns_it():
    first = images_table(IMAGES, Asked.parse({"images": "size", "images_page": "3"}))
    [size] = [column for column in first.columns if column.title == "Size here"]
    assert size.sorted == "descending"
    assert size.link == "/_stats?images=-size#images"
    assert [column.sorted for column in first.columns].count("") == 4
    turned = images_table(IMAGES, Asked.parse({"images": "-size"}))
    assert [column.sorted for column in turned.columns if column.title == "Size here"] == ["ascending"]


@pytest.mark.parametrize(
    ("search", "found"), [("NO", ["node:22"]), ("n:", []), ("", 3), ("sha256:" + b"nginx".hex(), ["nginx:1"])]
)
def test_a_search_looks_into_names_and_at_the_beginning_of_digests(search, found):
    table = images_table(IMAGES, Asked.parse({"search": search}))
    assert (names(table) if isinstance(found, list) else table.found) == found
    assert table.total == 3


def uses(number):
    return {f"library/{place}": (place, place * 2, place // 2, place) for place in range(number)}


def test_all_repositories_are_reached_page_by_page():
    everything, seen = uses(10_000), []
    asked = Asked()
    while True:
        table = uses_table(everything, asked, "repositories", "Repository")
        seen += [name for name, _ in table.rows]
        if not table.next:
            break
        asked = asked._replace(repositories_page=table.page + 1)
        assert table.next == asked.link("repositories")
    assert len(table.rows) <= ROWS
    assert sorted(seen) == sorted(everything)
    assert seen[0] == "library/9999", "the ones with the most bytes come first"
    assert table.pages == 10_000 // ROWS


def test_a_page_behind_the_last_is_the_last():
    table = uses_table(uses(30), Asked.parse({"repositories_page": "900"}), "repositories", "Repository")
    assert (table.page, len(table.rows), table.next) == (2, 5, "")
    assert table.previous == "/_stats#repositories"


@pytest.mark.parametrize(
    "query",
    [
        {"images": "__class__"},
        {"repositories": "--bytes"},
        {"images_page": "0"},
        {"images_page": "-1"},
        {"images_page": "1e9"},
        {"images_page": "9" * 5000},
        {"images_page": "²"},  # a digit that is no number
        {"clients": ""},
    ],
)
def test_nonsense_in_the_address_is_as_if_it_were_absent(query):
    assert Asked.parse(query) == Asked()


def test_a_search_is_bounded():
    assert len(Asked.parse({"search": "x" * 10_000}).search) == 100


def test_links_keep_the_rest_and_leave_out_what_is_usual():
    asked = Asked.parse({"search": "a&b=c", "images": "size", "clients": "bytes", "refresh": ""})
    assert asked.link("images", images_page=2) == "/_stats?search=a%26b%3Dc&images=size&images_page=2&refresh=1#images"
    assert Asked().link() == "/_stats"
    assert dict(asked.hidden()) == {
        "images": "size",
        "repositories": "bytes",
        "clients": "bytes",
        "refresh": "1",
    }
