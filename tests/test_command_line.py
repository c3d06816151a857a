"""What every command has in common: help with examples, one line for what is mistyped, completion."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from registry_cache.cli import admin, cli, common
from registry_cache.cli.common import COMMANDS, GROUPS
from registry_cache.runtime.pointers import running_caches, runtime_directory
from registry_cache.settings.groups import grouped_settings
from registry_cache.settings.model import Settings
from tests.e2e.command import PROGRAM, environment, free_port, until

pytestmark = pytest.mark.program

# A replica whose Redis is not there, and whose port is not this machine's.
FLEET = ["--fleet-redis-url=redis://127.0.0.1:1", "--fleet-key-file={key}", "--fleet-listen=192.0.2.1:5001"]


def run(*arguments, **env):
    return subprocess.run(
        [PROGRAM, *arguments], check=False, capture_output=True, text=True, timeout=60, env=environment(**env)
    )


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_help_ends_with_examples(arguments):
    done = run(*arguments, "--help", COLUMNS="110")
    assert (done.returncode, done.stderr) == (0, "")
    *_, last = done.stdout.strip().split("\n\n")
    title, *examples = last.splitlines()
    assert title.strip() == "Examples:"
    assert sum("registry-cache" in line for line in examples) >= 2


def test_the_program_alone_shows_its_commands():
    done = run()
    assert done.returncode == 2
    assert [name for name in COMMANDS if f"\n  {name} " not in done.stderr] == []


def test_the_programs_help_has_groups_and_whole_summaries():
    done = run("--help", COLUMNS="80")
    assert [title for title in GROUPS if f"\n{title}:\n" not in done.stdout] == []
    told = " ".join(done.stdout.split())
    with click.Context(cli) as context:
        for name in COMMANDS:
            summary = " ".join(cli.get_command(context, name).help.partition("\n\n")[0].split()).partition(". ")[0]
            assert f"{name} {summary.removesuffix('.')}" in told


def test_the_help_of_serve_has_every_setting_once_in_its_group():
    """In the order of configuration.md; one without a group is among others."""
    told = run("serve", "--help", COLUMNS="110").stdout
    titles = re.findall(r"^(\S.*):$", told, re.MULTILINE)
    assert titles == [*grouped_settings(), "Options"]
    flags = re.findall(r"^  (?:-h, )?--([a-z0-9-]+)", told, re.MULTILINE)
    names = [name for names in grouped_settings().values() for name in names]
    assert flags == [name.replace("_", "-") for name in [*names, "config", "help"]]
    assert {*names, "prune", "upstreams", "access", "limits", "oidc"} == set(Settings.model_fields)


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_a_start_without_tls_does_not_load_what_certificates_need(command):
    script = f"import sys, registry_cache.cli.{command}; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, env=environment()).returncode == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::]", "localhost"])
def test_a_start_on_a_port_that_is_taken_leaves_nothing_behind(tmp_path, host):
    family = socket.AF_INET6 if host == "[::1]" else socket.AF_INET
    with socket.create_server((host.strip("[]") if host == "[::1]" else "127.0.0.1", 0), family=family) as other:
        listen = f"{host}:{other.getsockname()[1]}"
        done = run("serve", "--listen", listen, "--cache-dir", tmp_path / "new" / "cache")
    assert (done.returncode, done.stderr) == (1, f"registry-cache: LISTEN {listen}: Address already in use\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--listen=192.0.2.1:5000"], "LISTEN 192.0.2.1:5000: Cannot assign requested address"),
        (["--ops-listen=192.0.2.1:1"], "OPS_LISTEN 192.0.2.1:1: Cannot assign requested address"),
        (["--listen-socket=/nosuch/a.sock"], "LISTEN_SOCKET /nosuch/a.sock: No such file or directory"),
        (["--listen-socket=/tmp/" + "x" * 120], "LISTEN_SOCKET /tmp/" + "x" * 120 + ": AF_UNIX path too long"),
        (["--ca-file={key}"], "CA_FILE: {key}: there is no certificate, or no key, in PEM form in it"),
        (FLEET, "FLEET_LISTEN 192.0.2.1:5001: Cannot assign requested address"),
    ],
)  # fmt: skip
def test_a_start_that_fails_leaves_nothing_behind(tmp_path, flags, said):
    key = tmp_path / "key"
    key.write_text("k" * 32)
    key.chmod(0o600)
    found = [flag.format(key=key) for flag in flags]
    done = run("serve", "--listen=127.0.0.1:0", *found, "--cache-dir", tmp_path / "new" / "cache")
    assert (done.returncode in (1, 2), done.stderr) == (True, f"registry-cache: {said.format(key=key)}\n")
    assert list(tmp_path.iterdir()) == [key]


def test_a_start_that_fails_leaves_what_was_there_before(tmp_path):
    (tmp_path / "here").mkdir()
    done = run("serve", "--listen=192.0.2.1:5000", "--cache-dir", tmp_path / "here")
    assert done.returncode == 1
    assert (tmp_path / "here" / "index.sqlite3").is_file()


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        (["sevre"], {}, "registry-cache: No such command: sevre. Did you mean serve?"),
        (["xyzzy"], {}, "registry-cache: No such command: xyzzy. See registry-cache --help"),
        (["serve", "--max-sise", "1GB"], {}, "No such option: --max-sise. Did you mean --max-size?"),
        (["prune", "--kep", "x"], {}, "No such option: --kep. Did you mean --keep?"),
        (["stats", "--jsn"], {}, "registry-cache stats: No such option: --jsn. Did you mean --json?"),
        (["serve"], {"REGISTRY_CACHE_MAXSIZE": "1GB"}, "_CACHE_MAXSIZE is not a setting: did you mean MAX_SIZE?"),
        (["prune"], {"REGISTRY_CACHE_PRUNE_KEEP": "x"}, "did you mean PRUNE__KEEP?"),
        (["serve"], {"REGISTRY_CACHE_LOG_LEVEL": "loud"}, "LOG_LEVEL: 'loud': allowed is 'debug', "),
        (["warm", "--parallel", "99", "alpine"], {}, "99 is not in the range 1<=x<=32."),
        (["completion", "tcsh"], {}, "'tcsh' is not one of 'bash', 'zsh', 'fish'."),
    ],
)  # fmt: skip
def test_what_is_mistyped_is_one_line_and_names_what_was_meant(arguments, env, said):
    done = run(*arguments, **env)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ('tag_tll = "1h"', "TAG_TLL: no such setting: did you mean TAG_TTL?"),
        ('tag-ttl = "1h"', "TAG-TTL: no such setting: did you mean TAG_TTL?"),
        ('[prune]\nkepe = ["a"]', "PRUNE__KEPE: no such setting: did you mean PRUNE__KEEP?"),
        ('keep = ["a"]', "KEEP: no such setting: did you mean PRUNE__KEEP?"),
        ("xyzzy = 1", "XYZZY: no such setting"),
    ],
)
def test_mistyped_key_of_the_settings_file(tmp_path, text, meant):
    file = tmp_path / "settings.toml"
    file.write_text(text)
    done = run("serve", "--config", file)
    assert (done.returncode, done.stderr) == (2, f"registry-cache: {meant} (in {file})\n")


def as_somebody_else(*arguments):
    # Imported before: the program itself may be where nobody else can go.
    modules = "registry_cache.cli.serve, registry_cache.cli.stats, registry_cache.cli.verify"
    script = f"import os, {modules}; from registry_cache.cli import main; os.setgroups([]); os.setuid(65534); main()"
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("setting", ["--config", "--ca-file", "--password-file"])
def test_file_that_this_user_may_not_see_is_one_line(tmp_path, setting):
    """In a closed folder, where even to ask whether it is there is refused."""
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    (hidden / "file").write_text("")
    arguments = ["serve", setting, str(hidden / "file"), "--cache-dir", "/nowhere", "--username", "a"]
    done = as_somebody_else(*arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert str(hidden) in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_not_ask_the_service_is_told_so(tmp_path):
    (tmp_path / "cache").mkdir(mode=0o700)
    done = as_somebody_else("stats", "--cache-dir", str(tmp_path / "cache"))
    assert done.returncode == 3
    assert done.stderr.endswith("only root and the user that runs the cache may ask it: try sudo\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("closed", ["cache", "cache/blobs", "cache/blobs/sha256"])
def test_who_may_not_read_the_cache_is_told_so_by_verify(tmp_path, closed):
    (tmp_path / "cache/blobs/sha256/aa").mkdir(parents=True)
    (tmp_path / closed).chmod(0o700)
    done = as_somebody_else("verify", "--cache-dir", str(tmp_path / "cache"))
    assert done.returncode == 3
    assert done.stderr.endswith("only root and the user that runs the cache may read it: try sudo\n")


def test_a_cache_on_a_read_only_disk_is_not_called_absent(tmp_path, monkeypatch):
    """It serves, and has no socket."""
    monkeypatch.setattr(os, "statvfs", lambda _path: SimpleNamespace(f_flag=os.ST_RDONLY))
    result = CliRunner().invoke(cli, ["list", "--cache-dir", str(tmp_path)])
    assert result.exit_code == 3
    assert f"{tmp_path} is read-only" in result.stderr
    assert "start it" not in result.stderr


@pytest.mark.parametrize(("uid", "taken"), [(0, True), (1000, False)])
def test_settings_of_the_installed_service_are_the_default_for_root(tmp_path, monkeypatch, uid, taken):
    """After make install nobody has to say --config; others than root may not ask the service anyway."""
    installed = tmp_path / "registry-cache.toml"
    # The account's token is the unit's credential: only the service itself sees it.
    installed.write_text(f'cache_dir = "{tmp_path}/here"\nusername = "ci"\n')
    monkeypatch.setattr(common, "INSTALLED_CONFIG", installed)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}/elsewhere")
    for name in ("stats", "list", "pin", "unpin", "purge", "warm", "doctor", "verify"):
        (config,) = (p for p in cli.get_command(None, name).params if p.name == "config")
        assert config.get_default(click.Context(cli)) == (installed if taken else None)
    monkeypatch.setattr(admin, "INSTALLED_CONFIG", installed)
    result = CliRunner().invoke(cli, ["stats"])
    assert (f"no cache is running in {tmp_path}/here: start it" in result.stderr) == taken
    assert ("the installed service is asked as root: try sudo" in result.stderr) == (not taken)


def test_variables_of_others_do_not_stop_it():
    """Those that Kubernetes makes for a Service named registry-cache, and one that resembles nothing."""
    kubernetes = {"PORT": "tcp://10.0.0.1:5000", "SERVICE_HOST": "10.0.0.1", "PORT_5000_TCP_ADDR": "10.0.0.1"}
    env = {f"REGISTRY_CACHE_{name}": value for name, value in kubernetes.items()}
    done = run("guard", "--lock-file", os.devnull, "--", "true", **env, REGISTRY_CACHE_REQUIRE_DAEMONS="1")
    assert done.returncode != 2, done.stderr


@pytest.mark.parametrize(("shell", "option"), [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")])
def test_completion_script_is_one(shell, option, tmp_path):
    done = run("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert "_REGISTRY_CACHE_COMPLETE" in done.stdout
    if shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(done.stdout)
        subprocess.run([shell, option, script], check=True)


def completed(*words):
    """What Tab offers in a real bash after *words*."""
    script = (
        'source /dev/stdin <<< "$(registry-cache completion bash)"\n'
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))\n'
        '_registry_cache_completion registry-cache; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    path = f"{PROGRAM.parent}:{os.environ['PATH']}"
    # compopt, which bash has only while it completes, is not there.
    done = subprocess.run(
        ["bash", "-c", f"compopt() {{ :; }}\n{script}", "bash", *words],
        check=True, capture_output=True, text=True, env=environment(PATH=path),
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


def test_tab_in_bash():
    assert completed("registry-cache", "pu") == ["purge"]
    assert completed("registry-cache", "purge", "--y") == ["--yes"]
    assert "--max-size" in completed("registry-cache", "serve", "--max")


def test_a_home_that_is_closed_to_this_user_is_no_crash(monkeypatch, tmp_path):
    """``setpriv --reuid=registry-cache registry-cache doctor`` keeps root's HOME."""
    closed = Path("/closed-to-this-user/registry-cache")
    real = Path.stat

    def stat(path, **how):
        if path.is_relative_to(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **how)

    monkeypatch.setattr(Path, "stat", stat)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(admin, "running_caches", lambda *_: [])  # whatever else runs on this machine
    monkeypatch.setattr(admin, "load_settings", lambda *_, **__: Settings.model_construct(set(), cache_dir=closed))
    assert admin.settings_of(None, None).cache_dir == closed


def redirected(redirection, *arguments, **env):
    """The program with its streams as a shell has them."""
    return subprocess.run(
        ["/bin/sh", "-c", f'"$@" {redirection}', "sh", PROGRAM, *arguments],
        check=False, capture_output=True, text=True, timeout=60, env=environment(**env),
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments", [["--version"], ["completion", "bash"], ["serve", "--help"], ["doctor"]], ids=" ".join
)
def test_output_that_cannot_be_written_is_one_line_and_a_code_of_its_own(tmp_path, arguments):
    done = redirected(">/dev/full", *arguments, REGISTRY_CACHE_CACHE_DIR=str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (4, 1), done.stderr
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_dev_null(tmp_path, closed):
    done = redirected(closed, "stats", "--cache-dir", str(tmp_path))
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


def test_what_an_encoding_does_not_have_is_replaced(tmp_path):
    done = run("doctor", "--cache-dir", str(tmp_path), PYTHONIOENCODING="ascii")
    assert (done.returncode in (0, 1), "Traceback" in done.stderr, "settings" in done.stdout) == (True, False, True)


def test_serve_with_closed_streams_starts_and_ends_well(tmp_path):
    port = free_port()
    command = [PROGRAM, "serve", "--cache-dir", tmp_path, "--listen", f"127.0.0.1:{port}", "--log-format", "console"]
    for streams in ("<&- >&- 2>&-", ">/dev/full"):
        with subprocess.Popen(["/bin/sh", "-c", f'exec "$@" {streams}', "sh", *command], env=environment()) as process:
            try:
                until(
                    lambda: running_caches(runtime_directory(os.environ), os.geteuid()).count(tmp_path), "it is ready"
                )
            finally:
                process.terminate()
            assert process.wait(60) == 0


def test_a_reload_while_it_starts_ends_nothing():
    script = (
        "import os, signal, registry_cache.cli.serve as serve; from registry_cache.cli import main\n"
        "load = serve.load_settings\n"
        "serve.load_settings = lambda *given: (os.kill(os.getpid(), signal.SIGHUP), load(*given))[1]\n"
        "main()"
    )
    command = [sys.executable, "-c", script, "serve", "--max-size", "nonsense"]
    assert subprocess.run(command, check=False, env=environment(), stderr=subprocess.DEVNULL).returncode == 2


@pytest.mark.parametrize("command", [["warm", "nginx"], ["client-config", "dockerd"]])
@pytest.mark.parametrize("url", ["cache", "http://", "ftp://cache", "http://cache/path"])
def test_where_a_cache_is_has_one_form(command, url):
    done = run(*command, "--url", url)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "allowed is where the cache is" in done.stderr
