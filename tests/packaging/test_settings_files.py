"""The settings files that make install lays down: what they show is what the program knows."""

import re
from pathlib import Path

import pytest

from registry_cache.settings.load import load_settings
from registry_cache.settings.model import PruneSettings, Settings

PACKAGING = Path(__file__).parents[2] / "packaging"
EXAMPLES = {"cache_dir", "username", "keep"}  # shown with a value that is not the default


@pytest.mark.parametrize("name", ["registry-cache.toml", "registry-cache-prune.toml"])
def test_commented_lines_are_settings_with_their_defaults(name, tmp_path, monkeypatch):
    (tmp_path / "password").write_text("x")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    file = tmp_path / name
    file.write_text(re.sub(r"(?m)^#(?=\w+ = )", "", (PACKAGING / name).read_text()))
    settings = load_settings(file)
    shown, defaults = settings, Settings.model_fields
    if "prune" in name:
        shown, defaults = settings.prune, PruneSettings.model_fields
    assert len(shown.model_fields_set) > 3
    for field in shown.model_fields_set - EXAMPLES - {"prune", "password_file"}:
        assert getattr(shown, field) == defaults[field].get_default(), field
