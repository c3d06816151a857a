"""What doctor says of the account's token."""

import os
import pwd

import pytest

from registry_cache.doctor import secret as secret_module
from registry_cache.doctor.secret import new_token, service_user, with_installed_token
from registry_cache.doctor.secret import secret as judged
from registry_cache.model.errors import SettingsError
from registry_cache.settings.load import load_settings

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root looks with another user's eyes")


@pytest.fixture
def secret(tmp_path):
    """A token in a directory that others may enter, as pytest's own may not be."""
    path = tmp_path / "pat"
    path.write_text("dckr_pat_x\n")
    path.chmod(0o600)
    return path


def settings(tmp_path, **flags):
    return load_settings(None, {"cache_dir": tmp_path / "cache", **flags})


@pytest.mark.parametrize(
    ("mode", "state"), [(0o600, "ok"), (0o640, "ok"), (0o644, "warning"), (0o660, "warning"), (0o602, "warning")]
)
def test_secret_that_others_read(tmp_path, secret, monkeypatch, mode, state):
    monkeypatch.setattr(secret_module, "_is_in_the_open", lambda _path: True)
    secret.chmod(mode)
    check = judged(settings(tmp_path, username="ci", password_file=secret))
    assert check.state == state
    assert (check.remedy == f"chmod 600 {secret}") == (state == "warning")


def test_secret_in_a_closed_directory_is_nobody_elses(tmp_path, secret):
    secret.chmod(0o644)
    tmp_path.chmod(0o700)
    assert judged(settings(tmp_path, username="ci", password_file=secret)).state == "ok"


def test_empty_or_lost_secret_is_broken(tmp_path, secret):
    given = settings(tmp_path, username="ci", password_file=secret)
    secret.write_text(" \n")
    assert (judged(given).state, judged(given).text) == ("broken", f"{secret} is empty")
    secret.unlink()
    assert judged(given).state == "broken"


def test_no_account_is_a_warning(tmp_path):
    assert judged(settings(tmp_path)).state == "warning"


def test_a_service_that_does_not_run_is_judged_by_the_token_it_would_be_given(tmp_path, monkeypatch):
    token = tmp_path / "registry-cache.password"
    monkeypatch.setattr(secret_module, "INSTALLED_TOKEN", token)
    settings = load_settings(None, {"username": "ci"}, with_token=False)
    check = judged(with_installed_token(settings))
    assert (check.state, str(token) in check.remedy) == ("warning", True)
    token.write_text("secret")
    token.chmod(0o600)
    assert judged(with_installed_token(settings)).text == f"{token}: nobody else reads it"


def test_without_an_account_it_says_where_an_installed_service_takes_the_token_from():
    check = judged(load_settings(None, {}))
    assert (check.state, str(secret_module.INSTALLED_TOKEN) in check.remedy) == ("warning", True)


# --- with the eyes of the service's user --------------------------------------------------------------------------


@pytest.fixture
def open_folder(tmp_path_factory):
    """A folder that everybody may enter, which pytest's own are not."""
    opened = []
    folder = tmp_path_factory.mktemp("open")
    for each in (folder, *folder.parents):
        mode = each.stat().st_mode
        if not mode & 0o001:
            opened.append((each, mode))
            each.chmod(mode | 0o001)
    yield folder
    for each, mode in opened:
        each.chmod(mode)


@as_root
def test_a_token_that_root_reads_and_the_service_does_not_is_broken(open_folder):
    nobody = pwd.getpwnam("nobody")
    token = open_folder / "pat"
    token.write_text("dckr_pat_x")
    token.chmod(0o600)
    given = settings(open_folder, username="ci", password_file=token)
    check = judged(given, user=nobody)
    assert (check.state, check.text) == ("broken", f"{token}: the service's user, nobody, may not read it")
    assert check.remedy.startswith(f"chown nobody {token}")
    assert "/etc/credstore" in judged(given, user=nobody, installed=True).remedy
    # The remedy is one, and this process is root's again.
    os.chown(token, nobody.pw_uid, -1)
    assert judged(given, user=nobody).state == "ok"
    assert (os.geteuid(), os.getegid()) == (0, 0)
    # A folder on the way is closed to it.
    open_folder.chmod(0o700)
    assert judged(given, user=nobody).state == "broken"


@as_root
def test_what_the_unit_hides_is_no_place_for_a_token(tmp_path, monkeypatch):
    token = tmp_path / "home/ci/pat"
    token.parent.mkdir(parents=True)
    token.write_text("dckr_pat_x")
    monkeypatch.setattr(secret_module, "_HIDDEN", (tmp_path / "home",))
    given = settings(tmp_path, username="ci", password_file=token)
    check = judged(given, user=pwd.getpwnam("nobody"), installed=True)
    assert (check.state, "ProtectHome=" in check.text) == ("broken", True)
    assert str(secret_module.INSTALLED_TOKEN) in check.remedy


@as_root
def test_the_services_user_is_who_owns_its_directory(tmp_path):
    nobody = pwd.getpwnam("nobody")
    given = settings(tmp_path)
    given.cache_dir.mkdir()
    assert service_user(given) is None  # root's
    os.chown(given.cache_dir, nobody.pw_uid, -1)
    assert service_user(given).pw_name == "nobody"


def test_an_installed_service_without_its_token_says_where_it_has_to_be(tmp_path, monkeypatch):
    token = tmp_path / "registry-cache.password"
    monkeypatch.setattr(secret_module, "INSTALLED_TOKEN", token)
    given = load_settings(None, {"username": "ci"}, with_token=False)
    check = judged(given, installed=True)
    assert (check.state, f"{token} is not there" in check.text) == ("broken", True)
    assert f"install -D -m 600 /dev/stdin {token}" in check.remedy
    # There, and closed to whoever asks: systemd hands it over.
    token.write_text("x")
    assert judged(given, installed=True).state == "ok"


@pytest.mark.parametrize("name", ["/run/credentials/registry-cache.service/password", "the installed one"])
def test_a_token_that_systemd_hands_over_is_written_where_it_comes_from(name):
    path = secret_module.Path(name) if name.startswith("/") else secret_module.INSTALLED_TOKEN
    given = load_settings(None, {"username": "ci"}, with_token=False).model_copy(update={"password_file": path})
    for remedy in (new_token(path), judged(given).remedy):
        assert str(secret_module.INSTALLED_TOKEN) in remedy
        assert "systemctl restart registry-cache" in remedy


def test_a_file_that_a_setting_names_is_missing_unreadable_or_none(tmp_path, monkeypatch):
    def refused(path):
        with pytest.raises(SettingsError) as caught:
            load_settings(None, {"username": "ci", "password_file": path})
        return str(caught.value)

    assert "there is none" in refused(tmp_path / "none")
    assert "this is no file" in refused(tmp_path)
    closed = tmp_path / "closed"
    closed.write_text("x")
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.F_OK)
    assert "this user may not read it" in refused(closed)
