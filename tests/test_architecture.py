"""Imports point downwards, and foreign libraries stay where they belong."""

import ast
import fnmatch
import functools
import re
import tomllib
from pathlib import Path

import registry_cache

ROOT = Path(registry_cache.__file__).parent
REPOSITORY = Path(__file__).parent.parent

FOREIGN = {
    "httpx": ("upstream",),
    "urllib3": ("upstream",),
    "sqlite3": ("store.index", "cli.verify"),
    "aiodocker": ("hostprune",),
    "cryptography": ("web.certificates", "access.authority", "access.client_login", "doctor"),
    "bcrypt": ("access",),
    "jwt": ("access.issuers",),
    "redis": ("fleet.connection", "fleet.sentinels"),
}
# What is no layer: the entry, and the map itself.
NO_LAYER = {"__init__", "__main__"}


def layers() -> dict[str, int]:
    """The layer of each package, the lowest is 0, as the map has them."""
    found: dict[str, int] = {}
    layer = 0
    for mark, package in re.findall(r"^    (\| )?(\w+) {2,}\S", registry_cache.__doc__ or "", re.MULTILINE):
        layer -= not mark
        found[package] = layer
    return {package: number - layer for package, number in found.items()}


LAYERS = layers()


@functools.cache
def modules():
    return [
        (".".join(path.relative_to(ROOT).with_suffix("").parts), ast.parse(path.read_text()))
        for path in sorted(ROOT.rglob("*.py"))
    ]


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_package_and_module_has_its_place_in_the_map():
    there = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - NO_LAYER == set(LAYERS)


def test_imports_point_downwards():
    for module, tree in modules():
        here = module.partition(".")[0]
        for name in imported(tree):
            there = name.split(".")[1] if name.startswith("registry_cache.") else here
            if here in NO_LAYER or there in ("__version__", here):
                continue
            assert LAYERS[there] < LAYERS[here], f"{module} imports {name}"


def test_every_package_says_what_it_is_for():
    for module, tree in modules():
        assert ast.get_docstring(tree), module


def test_the_document_has_the_same_map():
    map_ = re.search(r"((?:^    (?:\| )?\w+ {2,}\S.*\n?)+)", registry_cache.__doc__ or "", re.MULTILINE)
    assert map_ is not None
    shown = "\n".join(line[4:] for line in map_[1].splitlines())
    assert shown in (REPOSITORY / "docs" / "architecture.md").read_text()


def test_foreign_libraries_stay_where_they_belong():
    for module, tree in modules():
        for name in imported(tree):
            homes = FOREIGN.get(name.partition(".")[0])
            assert homes is None or module.startswith(homes), f"{module} imports {name}"


def test_the_version_is_written_in_one_place():
    metadata = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert "version" in metadata["project"]["dynamic"]
    assert (REPOSITORY / metadata["tool"]["hatch"]["version"]["path"]).samefile(registry_cache.__file__)


def test_pytest_looks_into_every_folder_that_has_tests(request):
    """By itself it leaves out those that are called dist, build or venv: make dist-test ran nothing, and said so."""
    left_out = request.config.getini("norecursedirs")
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        folders = path.relative_to(REPOSITORY).parts[:-1]
        assert not [name for name in folders for pattern in left_out if fnmatch.fnmatch(name, pattern)], path
