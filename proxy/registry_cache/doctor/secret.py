"""The account's token: it is there, the service may read it, and nobody else does."""

import os
import pwd
import stat
from contextlib import suppress
from pathlib import Path

from registry_cache.doctor.check import Check
from registry_cache.settings.model import Settings

# Where packaging/systemd/registry-cache.service has systemd take the token from.
INSTALLED_TOKEN = Path("/etc/credstore/registry-cache.password")
INSTALLED_USER = "registry-cache"
# systemd's copies, made when a service starts.
_CREDENTIALS = Path("/run/credentials")
# The installed unit's ProtectHome=.
_HIDDEN = (Path("/home"), Path("/root"), Path("/run/user"))
_NAME = "credential file"


def with_installed_token(settings: Settings) -> Settings:
    """*settings* with the token that the installed unit would be given, where they have an account without one."""
    if settings.username and settings.password_file is None and os.access(INSTALLED_TOKEN, os.R_OK):
        return settings.model_copy(update={"password_file": INSTALLED_TOKEN})
    return settings


def service_user(settings: Settings) -> pwd.struct_passwd | None:
    """Who runs the service, for root to look with that user's eyes; None where that is this user, or root."""
    if os.geteuid() != 0:
        return None
    with suppress(OSError, KeyError):
        owner = pwd.getpwuid(settings.cache_dir.stat().st_uid)
        return owner if owner.pw_uid else None
    with suppress(KeyError):  # it never ran
        return pwd.getpwnam(INSTALLED_USER)
    return None


def secret(settings: Settings, *, user: pwd.struct_passwd | None = None, installed: bool = False) -> Check:
    """The file with the credential.

    Args:
        user: who has to read it, where that is not who asks.
        installed: the service is the one that ``make install`` and the packages make.
    """
    path = settings.password_file
    if not settings.username:
        remedy = "set USERNAME, and PASSWORD_FILE to a file with an access token that may only read; with make "
        remedy += f"install, write the token into {INSTALLED_TOKEN}, mode 600, and restart the service"
        return Check(_NAME, "warning", "no account: Docker Hub allows few anonymous pulls", remedy)
    if path is None:
        return _unknown(settings.username, installed=installed)
    return _out_of_reach(path, user, installed=installed) or _of(path)


def _of(path: Path) -> Check:
    """What is in it, as this user sees it."""
    try:
        mode, content = path.stat().st_mode, path.read_bytes().strip()
    except OSError as error:
        if isinstance(error, PermissionError) and os.geteuid() != 0:
            remedy = "run doctor as root, or as the service's user"
            return Check(_NAME, "warning", f"{path}: this user may not look at it", remedy)
        return Check(
            _NAME, "broken", f"{path}: {(error.strerror or '').lower()}", f"write the access token {_into(path)}"
        )
    if not content:
        return Check(_NAME, "broken", f"{path} is empty", f"write the access token {_into(path)}")
    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP) and _is_in_the_open(path):
        remedy = f"chmod 600 {path}"
        if path.resolve().is_relative_to("/nix/store"):
            remedy = "everybody reads the Nix store: name a file outside it, and write the token there"
        return Check(_NAME, "warning", f"{path}: others may read or change it ({mode & 0o777:o})", remedy)
    return Check(_NAME, "ok", f"{path}: nobody else reads it")


def new_token(path: Path | None) -> str:
    """What to do about a token that is no good."""
    if path is not None and _is_handed_over(path):
        # systemd copied it when the service started: a changed file alone changes nothing.
        return f"make a new access token, and write it {_into(path)}"
    return f"make a new access token and write it into PASSWORD_FILE ({path}); the service reads it again by itself"


def _into(path: Path) -> str:
    if not _is_handed_over(path):
        return f"into {path}"
    return (
        f"into the file that its unit names (make install: {INSTALLED_TOKEN}), then: systemctl restart registry-cache"
    )


def _is_handed_over(path: Path) -> bool:
    return path == INSTALLED_TOKEN or path.is_relative_to(_CREDENTIALS)


def _unknown(username: str, *, installed: bool) -> Check:
    """No file is named: the installed unit has a place for it."""
    if installed:
        try:
            INSTALLED_TOKEN.stat()
        except FileNotFoundError:
            text = f"no token for {username}: {INSTALLED_TOKEN} is not there, and the service does not start without"
            remedy = f"write the access token into it (install -D -m 600 /dev/stdin {INSTALLED_TOKEN}), then: "
            return Check(_NAME, "broken", text, remedy + "systemctl restart registry-cache")
        except OSError:  # its folder is closed to this user
            pass
        else:
            return Check(_NAME, "ok", f"{INSTALLED_TOKEN}: root's, and handed to the service when it starts")
    text = f"no token is known for {username}, or only its unit knows it"
    return Check(
        _NAME, "warning", text, f"set PASSWORD_FILE; with make install: write it into {INSTALLED_TOKEN}, mode 600"
    )


def _out_of_reach(path: Path, user: pwd.struct_passwd | None, *, installed: bool) -> Check | None:
    """Root reads it, and the service cannot."""
    if user is None or _is_handed_over(path) or not path.exists():
        return None
    elsewhere = f"move it to {INSTALLED_TOKEN}, take password_file out of the settings, then: "
    elsewhere += "systemctl restart registry-cache"
    hidden = next((folder for folder in _HIDDEN if path.resolve().is_relative_to(folder)), None)
    if installed and hidden:
        return Check(_NAME, "broken", f"{path}: the service does not see {hidden} (ProtectHome=)", elsewhere)
    if _may_read(path, user):
        return None
    remedy = elsewhere if installed else f"chown {user.pw_name} {path}, and let that user into the folders above it"
    return Check(_NAME, "broken", f"{path}: the service's user, {user.pw_name}, may not read it", remedy)


def _may_read(path: Path, user: pwd.struct_passwd) -> bool:
    """Asked of the kernel as that user, so that groups, access lists and the folders on the way count."""
    group, groups = os.getegid(), os.getgroups()
    os.setgroups(os.getgrouplist(user.pw_name, user.pw_gid))
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def _is_in_the_open(path: Path) -> bool:
    """Whether others get as far as *path*: one closed directory above it keeps them out."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.resolve().parents)
