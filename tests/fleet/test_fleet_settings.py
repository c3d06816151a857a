"""Wrong settings of a fleet are one line each, and without a fleet nothing of it is loaded."""

import subprocess
import sys

import pytest

from registry_cache.model.errors import SettingsError
from registry_cache.settings.load import load_settings
from tests.e2e.command import flags, free_port, run_to_end

URL = "redis://redis.internal:6379"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"fleet_redis_url": "redis://:hunter2@r"},
            "FLEET_REDIS_URL: 'redis://…@r': allowed is a URL without a password",
        ),
        ({"fleet_redis_url": "http://r"}, "FLEET_REDIS_URL: 'http://r': allowed is a URL such as redis://"),
        ({"fleet_redis_url": "redis://r:99999"}, "FLEET_REDIS_URL: 'redis://r:99999': allowed is a URL such as"),
        ({"fleet_redis_url": "redis://r/x"}, "FLEET_REDIS_URL: 'redis://r/x': allowed after the host"),
        ({"fleet_redis_url": URL}, "FLEET_REDIS_URL is set but FLEET_KEY_FILE is not"),
        ({"fleet_name": "prod"}, "FLEET_NAME is set but FLEET_REDIS_URL is not"),
        ({"fleet_name": "Prod!"}, "FLEET_NAME: 'Prod!'"),
        ({"fleet_key_file": "SHORT"}, "allowed is a file of at least 32 bytes, the same for all; this one has 5"),
        ({"fleet_listen": "5001"}, "FLEET_LISTEN: '5001': allowed is HOST:PORT"),
        ({"fleet_advertise": "0.0.0.0:5001"}, "FLEET_ADVERTISE: '0.0.0.0:5001': allowed is the address and port"),
        ({"fleet_advertise": "10.0.0.1:0"}, "FLEET_ADVERTISE: '10.0.0.1:0': allowed is the address and port"),
        ({"fleet_peers": "10.0.0.300/8"}, "FLEET_PEERS"),
        ({"fleet_peers": ""}, "FLEET_PEERS: '': allowed are the networks"),
        ({"fleet_followers": 0}, "FLEET_FOLLOWERS: 0: allowed"),
        (
            {"fleet_redis_url": URL, "fleet_key_file": "KEY", "fleet_tls_key": "KEY"},
            "FLEET_TLS_CERT, FLEET_TLS_KEY and FLEET_TLS_CA go together",
        ),
        ({"fleet_tls_ca": "KEY"}, "FLEET_TLS_CA is set but FLEET_REDIS_URL is not"),
        ({"fleet_bucket_url": "https://s3/bucket"}, "FLEET_BUCKET_URL is set but FLEET_REDIS_URL is not"),
        ({"fleet_bucket_url": "s3://bucket"}, "FLEET_BUCKET_URL: 's3://bucket': allowed is a URL such as https://s3"),
        ({"fleet_bucket_url": "https://s3"}, "FLEET_BUCKET_URL: 'https://s3': allowed after the host is the name of"),
        ({"fleet_bucket_url": "https://s3/b/a b"}, "allowed after the host is the name of the bucket"),
        ({"fleet_bucket_url": "https://a:hunter2@s3/bu"}, "allowed is a URL without keys in it: use FLEET_S3_CRED"),
        ({"fleet_s3_region": "EU!"}, "FLEET_S3_REGION: 'EU!'"),
        ({"fleet_max_size": "0"}, "FLEET_MAX_SIZE: '0'"),
        (
            {"fleet_redis_url": URL, "fleet_key_file": "KEY", "fleet_bucket_url": "https://s3/bucket"},
            "FLEET_BUCKET_URL is set but FLEET_S3_CREDENTIALS_FILE is not",
        ),
        (
            {
                "fleet_redis_url": URL,
                "fleet_key_file": "KEY",
                "fleet_bucket_url": "https://s3/bucket",
                "fleet_s3_credentials_file": "KEY",
            },
            "FLEET_BUCKET_URL and FLEET_MAX_SIZE belong together",
        ),
        (
            {"fleet_redis_url": URL, "fleet_key_file": "KEY", "fleet_advertise": "203.0.113.5:5001"},
            "FLEET_ADVERTISE: '203.0.113.5:5001' is in no network of FLEET_PEERS",
        ),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, key_file, given, says):
    (tmp_path / "short").write_text("short")
    files = {"SHORT": tmp_path / "short", "KEY": key_file}
    given = {name: files.get(value, value) for name, value in given.items()}
    with pytest.raises(SettingsError) as error:
        load_settings(None, given)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(("content", "size"), [(b"short" + b"\n" * 40, 5), (b" " * 32, 0), (b"k" * 31 + b"\n", 31)])
@pytest.mark.parametrize("is_given", [True, False])
def test_a_key_is_measured_without_the_blanks_around_it(tmp_path, monkeypatch, content, size, is_given):
    file = tmp_path / "fleet.key"
    file.write_bytes(content)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    given = {"fleet_key_file": file} if is_given else {}
    with pytest.raises(SettingsError, match=f"FLEET_KEY_FILE: .*at least 32 bytes.*has {size}$"):
        load_settings(None, {"fleet_redis_url": URL, **given})


@pytest.mark.program
def test_a_wrong_one_ends_the_command_with_2(tmp_path):
    done = run_to_end(*flags({"cache_dir": str(tmp_path / "cache"), "fleet_redis_url": "redis://:secret@r"}))
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "secret" not in done.stderr + done.stdout
    assert not (tmp_path / "cache").exists()


@pytest.mark.program
def test_without_a_fleet_nothing_of_it_is_loaded():
    code = (
        "import sys, registry_cache.assembly.proxy, registry_cache.cli.serve;"
        "print([name for name in sys.modules if name.startswith(('redis', 'registry_cache.fleet'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.program
def test_without_redis_py_it_says_what_to_install(tmp_path, key_file, monkeypatch):
    (tmp_path / "redis.py").write_text("raise ImportError('not here')")
    settings = {"cache_dir": str(tmp_path / "cache"), "fleet_redis_url": URL, "fleet_key_file": str(key_file)}
    settings["listen"] = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run_to_end(*flags(settings))
    assert (done.returncode, done.stderr.strip().splitlines()) == (
        2,
        ["registry-cache: FLEET_REDIS_URL is set, but redis-py is not installed: pip install 'registry-cache[fleet]'"],
    )
