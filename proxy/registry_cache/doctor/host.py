"""Looks at this machine: settings file, cache directory, space, habits that undo the cache."""

import ipaddress
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from registry_cache.doctor.check import Check
from registry_cache.model.units import counted, format_size
from registry_cache.settings.model import Settings
from registry_cache.store.files import space_of

# Filesystems that lose data, locks or sockets in ways that a cache directory does not bear.
_UNSUITABLE = {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "vfat", "exfat"}
# What takes away every image that no container uses just now, and what removes all images by name.
_PRUNE_ALL = re.compile(
    r"\bdocker\b[^\n;&|#]*?\s(?:image|system)\s+prune\b[^\n;&|]*?\s(?:--all\b|-[a-z]*a[a-z]*\b)"
    r"|\bdocker\s+(?:rmi|image\s+rm)\b[^\n;&|]*\$\(\s*docker\s+(?:images|image\s+ls)"
    r"|\bdocker\s+(?:images|image\s+ls)\b[^\n;&]*\|\s*xargs\b[^\n;&|]*\bdocker\s+(?:rmi|image\s+rm)"
)
_HABITS = (
    "etc/crontab",
    "etc/anacrontab",
    "etc/cron.*/*",
    "var/spool/cron/*",
    "var/spool/cron/crontabs/*",
    "etc/systemd/system/**/*.service",
    "etc/systemd/user/*.service",
    "run/systemd/system/**/*.service",
    "usr/local/lib/systemd/system/*.service",
    "usr/lib/systemd/system/*.service",
    "lib/systemd/system/*.service",
    "root/.config/systemd/user/*.service",
    "home/*/.config/systemd/user/*.service",
)
# The unit of NixOS's virtualisation.docker.autoPrune, whatever flags it has: it removes stopped containers too.
_AUTO_PRUNE = ("etc/systemd/system/docker-prune.timer", "etc/systemd/system/docker-prune.service")
_READ_BYTES = 1024 * 1024
_SCRIPT = re.compile(r"(?<![\w.$/-])/[\w.+/@-]+")
_FEW_INODES = 0.05
# So many of the largest blobs have to find room.
_LARGEST = 2


def name_server(resolv_conf: Path = Path("/etc/resolv.conf")) -> Check | None:
    """The units deny link-local addresses, and some clouds have their name server there."""
    try:
        with resolv_conf.open(errors="replace") as file:
            lines = file.read(_READ_BYTES).splitlines()
    except OSError:
        return None
    servers = [words[1] for line in lines if len(words := line.split()) > 1 and words[0] == "nameserver"]
    if not servers or not all(map(_is_link_local, servers)):
        return None
    remedy = (
        f"where systemd runs the cache: systemctl edit registry-cache, [Service] IPAddressAllow={' '.join(servers)}"
    )
    text = f"{', '.join(servers)}: a link-local address, which the installed unit denies"
    return Check("name server", "warning", text, remedy)


def _is_link_local(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_link_local
    except ValueError:
        return False


def settings_file(path: Path | None) -> Check | None:
    """Who can write the settings file can point the credential elsewhere."""
    if path is None:
        return None
    try:
        mode = path.stat().st_mode
    except OSError as error:
        remedy = "run doctor as root, on the machine and in the container where the service runs"
        return Check("settings file", "warning", f"{path}: {(error.strerror or '').lower()}", remedy)
    if mode & stat.S_IWOTH:
        text = f"{path}: everybody may write it ({mode & 0o777:o})"
        return Check("settings file", "warning", text, f"chmod o-w {path}")
    return Check("settings file", "ok", f"{path}")


def cache_directory(settings: Settings, used_bytes: int | None, largest_bytes: int = 0) -> Iterator[Check]:
    """It is there, on a filesystem that is fit for it, with room for the cap.

    Args:
        used_bytes: what the running cache says it holds; None to count.
        largest_bytes: the size of the largest blob that it holds; 0 where that is not known.
    """
    path = settings.cache_dir
    if _is_missing(path):
        remedy = "start the service once, or name the right one with --cache-dir"
        yield Check("cache directory", "broken", f"{path} does not exist", remedy)
        return
    if not os.access(path, os.W_OK | os.X_OK):
        remedy = f"run doctor as root or as the service's user; if it is that user: chown -R USER {path}"
        yield Check("cache directory", "broken", f"{path}: not writable for this user", remedy)
        return
    kind = filesystem_of(path, Path("/proc/self/mountinfo").read_text())
    if kind in _UNSUITABLE:
        yield Check("cache directory", "warning", f"{path} is on {kind}", "put it on a local disk (ext4, xfs, btrfs)")
    elif path.stat().st_mode & stat.S_IWOTH:
        yield Check("cache directory", "warning", f"{path}: everybody may write in it", f"chmod o-w {path}")
    elif path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode = stat.S_IMODE(path.stat().st_mode)
        text = f"{path}: other users can read what is cached, private images too (mode {mode:04o})"
        yield Check("cache directory", "warning", text, f"chmod 0700 {path}")
    else:
        yield Check("cache directory", "ok", f"{path} on {kind}")
    yield _space(settings, used_bytes if used_bytes is not None else _used_bytes(path / "blobs"))
    if largest_bytes * _LARGEST > settings.max_size:
        text = f"MAX_SIZE is {format_size(settings.max_size)}, and one blob here has {format_size(largest_bytes)}"
        remedy = f"raise MAX_SIZE to {format_size(largest_bytes * _LARGEST)} at least: large blobs push each other out"
        yield Check("largest blob", "warning", text, remedy)


def _is_missing(path: Path) -> bool:
    """Not where a folder on the way is closed to this user: nobody knows then."""
    try:
        return not path.is_dir()
    except PermissionError:
        return False


def _space(settings: Settings, used: int) -> Check:
    disk = os.statvfs(settings.cache_dir)
    _, free, floor, free_files, min_free_files = space_of(disk, settings.min_free)
    missing = settings.max_size - used - (free - floor)
    text = f"{format_size(free)} free; {format_size(used)} of {format_size(settings.max_size)} (MAX_SIZE) used"
    if free <= floor:
        remedy = f"free some: below {format_size(floor)} (MIN_FREE) nothing more is stored"
        return Check("cache space", "broken", text, remedy)
    inodes = f"{disk.f_favail} of {disk.f_files} inodes free"
    if free_files <= min_free_files and disk.f_files:
        remedy = f"remove small files elsewhere on it (df -i): below {min_free_files} nothing more is stored"
        return Check("cache space", "broken", inodes, remedy)
    if missing > 0:
        remedy = f"lower MAX_SIZE, or free {format_size(missing)}: the cache cannot grow to its cap"
        return Check("cache space", "warning", text, remedy)
    if disk.f_files and disk.f_favail < disk.f_files * _FEW_INODES:
        return Check("cache space", "warning", inodes, "remove small files elsewhere on it: df -i shows where")
    return Check("cache space", "ok", text)


def _used_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def filesystem_of(path: Path, mountinfo: str) -> str:
    """The type of the filesystem that *path* is on.

    Args:
        mountinfo: ``/proc/self/mountinfo``.
    """
    found, longest = "an unknown filesystem", -1
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        where = fields.split()[4].replace("\\040", " ")
        inside = where == "/" or str(path.resolve()) == where or str(path.resolve()).startswith(where + "/")
        if inside and len(where) >= longest:
            found, longest = rest.split()[0], len(where)
    return found


def prune_habits(root: Path = Path("/")) -> Check:
    """Cron jobs and systemd units that throw away every image that is not running just now.

    Args:
        root: of the filesystem that is looked at.
    """
    found: dict[Path, None] = {}  # in order, each once: /lib is /usr/lib on most systems
    hidden = 0
    for path in _files(root):
        try:
            guilty = _prunes_all(path, root)
        except OSError:
            hidden += 1
            continue
        if guilty:
            found[path] = None
    for name in _AUTO_PRUNE:
        if (root / name).exists():
            found[root / name] = None
            break
    unseen = f" ({counted(hidden, 'file')} could not be read: run doctor as root)" if hidden else ""
    if not found:
        text = f"no cron job or systemd unit prunes all images{unseen}"
        return Check("prune habits", "ok" if not hidden else "warning", text, "run doctor as root to see all of them")
    return Check(
        "prune habits",
        "warning",
        f"prunes all images: {', '.join(map(str, found))}{unseen}",
        "put `registry-cache prune --apply` in its place; on NixOS: virtualisation.docker.autoPrune.enable = false",
    )


def _files(root: Path) -> Iterator[Path]:
    seen = set()
    for pattern in _HABITS:
        for path in sorted(root.glob(pattern)):
            if path.is_file() and (real := path.resolve()) not in seen:
                seen.add(real)
                yield path


def _prunes_all(path: Path, root: Path) -> bool:
    """Whether *path* does, or a script that it names."""
    lines = list(_commands(path))
    if any(map(_PRUNE_ALL.search, lines)):
        return True
    scripts = {name for line in lines for name in _SCRIPT.findall(line)}
    return any(_is_guilty_script(root / name.lstrip("/")) for name in scripts)


def _is_guilty_script(path: Path) -> bool:
    try:
        if not path.is_file():  # a unit may name a device: opening /dev/watchdog would arm it
            return False
        with path.open("rb") as file:
            if file.read(2) != b"#!":
                return False
        return any(map(_PRUNE_ALL.search, _commands(path)))
    except OSError:
        return False


def _commands(path: Path) -> Iterable[str]:
    """The lines of *path* that are no comments, continued ones joined."""
    with path.open("rb") as file:
        text = file.read(_READ_BYTES).decode(errors="replace")
    joined = re.sub(r"\\\n\s*", " ", text)
    return [line for line in joined.splitlines() if not line.lstrip().startswith(("#", ";"))]
