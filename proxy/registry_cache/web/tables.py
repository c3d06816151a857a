"""The page's long tables: what a reader asked to see of them, and the part that is shown. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import urlencode

from registry_cache.model.contents import Listed
from registry_cache.observe.uses import Use

ROWS = 25
_SEARCH_MAX = 100
_PAGE_DIGITS_MAX = 6

T = TypeVar("T")
Counts = Mapping[str, Sequence[int]]  # by name, in the order of Use
_IMAGES: Mapping[str, tuple[Callable[[Listed], Any], bool]] = {
    "name": (lambda one: one.name, False),
    "size": (lambda one: one.size_bytes, True),
    "used": (lambda one: one.last_use, True),
    "checked": (lambda one: one.checked_at, True),
    "pinned": (lambda one: one.pinned, True),
}
# The place of a column in the counts, and whether its largest come first.
_USES: Mapping[str, tuple[int | None, bool]] = {
    "name": (None, False),
    "requests": (0, True),
    "hits": (2, True),
    "bytes": (1, True),
    "saved": (3, True),
}


class Asked(NamedTuple):
    """What the address of the page says. Each table is sorted by one column, upside down with a minus before it."""

    search: str = ""
    images: str = "used"
    images_page: int = 1
    repositories: str = "bytes"
    repositories_page: int = 1
    clients: str = "bytes"
    clients_page: int = 1
    refresh: bool = False

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> "Asked":
        """From the address's parameters; whatever makes no sense there is as if it were absent."""
        return cls(
            search=query.get("search", "").strip()[:_SEARCH_MAX],
            images=_column(query.get("images", ""), _IMAGES, "used"),
            images_page=_page(query.get("images_page", "")),
            repositories=_column(query.get("repositories", ""), _USES, "bytes"),
            repositories_page=_page(query.get("repositories_page", "")),
            clients=_column(query.get("clients", ""), _USES, "bytes"),
            clients_page=_page(query.get("clients_page", "")),
            refresh="refresh" in query,
        )

    def link(self, table: str = "", **changes: Any) -> str:
        """The address of this page with *changes*, at the heading of *table*."""
        values = self._replace(**changes)._asdict()
        usual = Asked()._asdict()
        told = {name: value for name, value in values.items() if value != usual[name]}
        if told.pop("refresh", False):
            told["refresh"] = "1"
        return "/_stats" + (f"?{urlencode(told)}" if told else "") + (f"#{table}" if table else "")

    def hidden(self) -> list[tuple[str, str]]:
        """What a search keeps of the address: the order of the tables, not the page."""
        kept = {
            name: str(value) for name, value in self._asdict().items() if name in ("images", "repositories", "clients")
        }
        return [*kept.items(), *([("refresh", "1")] if self.refresh else [])]


class Column(NamedTuple):
    """A heading: where it leads to, and how the table is sorted by it now (as ``aria-sort`` has it, or "")."""

    title: str
    link: str
    sorted: str
    is_number: bool


class Table(NamedTuple, Generic[T]):
    """The rows of one page.

    Attributes:
        found: how many rows there are of what was searched for.
        total: how many without a search.
        previous, next: addresses, "" where there is none.
    """

    rows: Sequence[T]
    columns: list[Column]
    found: int
    total: int
    page: int
    pages: int
    previous: str
    next: str


def images_table(images: Sequence[Listed], asked: Asked) -> Table[Listed]:
    """Cached images whose name or digest has what was searched for in it."""
    wanted = asked.search.lower()
    found = [one for one in images if wanted in one.name.lower() or (wanted and one.digest.startswith(wanted))]
    titles = {"name": "Image", "size": "Size here", "used": "Last use", "checked": "Checked", "pinned": "Pinned"}
    return _table(found, len(images), asked, "images", _IMAGES, titles)


def uses_table(uses: Counts, asked: Asked, table: str, title: str) -> Table[tuple[str, Use]]:
    """Repositories, or clients."""
    wanted = asked.search.lower()
    # Names alone: a tuple for each of ten thousand would have the cycle collector stop the process.
    found = [name for name in uses if wanted in name.lower()]
    columns = {column: (_use_key(uses, place), is_down) for column, (place, is_down) in _USES.items()}
    titles = {"name": title, "requests": "Requests", "hits": "Hits", "bytes": "Bytes", "saved": "From here"}
    shown = _table(found, len(uses), asked, table, columns, titles)
    return Table(**shown._asdict() | {"rows": [(name, Use(*uses[name])) for name in shown.rows]})


def _use_key(uses: Counts, place: int | None) -> Callable[[str], Any]:
    return (lambda name: name) if place is None else (lambda name: uses[name][place])


def _table(
    found: list[T],
    total: int,
    asked: Asked,
    table: str,
    columns: Mapping[str, tuple[Callable[[T], Any], bool]],
    titles: Mapping[str, str],
) -> Table[T]:
    order: str = getattr(asked, table)
    key, is_down = columns[order.removeprefix("-")]
    found.sort(key=key, reverse=is_down != order.startswith("-"))
    pages = max(1, -(-len(found) // ROWS))
    page = min(getattr(asked, f"{table}_page"), pages)

    def at(number: int) -> str:
        return asked.link(table, **{f"{table}_page": number}) if 1 <= number <= pages else ""

    return Table(
        rows=found[(page - 1) * ROWS : page * ROWS],
        columns=[_heading(name, is_down, titles[name], order, asked, table) for name, (_, is_down) in columns.items()],
        found=len(found),
        total=total,
        page=page,
        pages=pages,
        previous=at(page - 1),
        next=at(page + 1),
    )


def _heading(name: str, is_down: bool, title: str, order: str, asked: Asked, table: str) -> Column:
    """A second press of the column that the table is sorted by turns it round."""
    is_sorted = order.removeprefix("-") == name
    turned = f"-{name}" if order == name else name
    goes_down = is_down != order.startswith("-")
    state = ("descending" if goes_down else "ascending") if is_sorted else ""
    return Column(title, asked.link(table, **{table: turned, f"{table}_page": 1}), state, is_down)


def _column(order: str, columns: Mapping[str, Any], usual: str) -> str:
    return order if order.removeprefix("-") in columns else usual


def _page(text: str) -> int:
    is_number = text.isascii() and text.isdigit() and len(text) <= _PAGE_DIGITS_MAX
    return max(1, int(text)) if is_number else 1
