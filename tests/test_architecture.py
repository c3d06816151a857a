"""Imports point downwards, and foreign libraries stay where they belong."""

import ast
import tomllib
from pathlib import Path

import proxy

ROOT = Path(__file__).parent.parent / "proxy"

# The floor of each module or package; a module may import from lower floors, and from its own package.
FLOORS = {
    "cli": 4, "__main__": 5,
    "doctor": 3.5, "assembly": 3.4, "reports": 3.2, "web": 3,
    "importing": 2, "pullthrough": 2, "curator": 2, "prefetch": 1.7, "answers": 1.7,
    "tags": 1.95, "manifest_source": 1.9, "lists": 1.9, "blobs": 1.9, "asking": 1.8, "negatives": 1.75,
    "flights": 1.68, "direct": 1.66, "parallel": 1.66, "transfer": 1.6, "flight": 1.5, "boarding": 1.4, "relay": 1.4,
    "slots": 1.3,
    "store": 1, "upstream": 1, "hostprune": 1, "metrics": 1, "logs": 1, "prometheus": 1.2,
    "warming": 0.6, "storage": 0.55, "contents": 0.5, "attention": 0.5,
    "oci": 0.4, "ranges": 0.4, "settings": 0.4, "events": 0.4, "singleflight": 0.4, "threads": 0.4, "clock": 0.4,
    "background": 0.45, "history": 0.48, "figures": 0.45,
    "systemd": 0.4, "registry2": 0.3, "units": 0.3,
    "manifests": 0.45, "proof": 0.6, "foreign": 0.2, "errors": 0, "terminal": 0, "pointers": 0,
}  # fmt: skip
FOREIGN = {
    "httpx": ("upstream",),
    "urllib3": ("upstream",),
    "sqlite3": ("store.index", "cli.verify"),
    "aiodocker": ("hostprune",),
}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts), ast.parse(path.read_text())


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_point_downwards():
    for module, tree in modules():
        here = module.partition(".")[0]
        if here == "__init__":
            continue
        for name in imported(tree):
            if not name.startswith("proxy."):
                continue
            there = name.split(".")[1]
            if there in ("__version__", here):
                continue
            assert FLOORS[there] < FLOORS[here], f"{module} imports {name}"


def test_siblings_of_the_first_floor_do_not_know_each_other():
    ground = {name for name, floor in FLOORS.items() if floor == 1}
    for module, tree in modules():
        here = module.partition(".")[0]
        for name in imported(tree):
            there = name.split(".")[1] if name.startswith("proxy.") else ""
            assert not (here in ground and there in ground and here != there), f"{module} imports {name}"


def test_foreign_libraries_stay_where_they_belong():
    for module, tree in modules():
        for name in imported(tree):
            homes = FOREIGN.get(name.partition(".")[0])
            assert homes is None or module.startswith(homes), f"{module} imports {name}"


def test_the_version_is_the_projects():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    assert proxy.__version__ == project["version"]
