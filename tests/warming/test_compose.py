"""Which images Compose would pull for a project."""

import io

import pytest

from registry_cache.warming import compose
from registry_cache.warming.compose import STDIN, read_project
from registry_cache.warming.interpolation import ComposeInvalid


@pytest.fixture
def project(tmp_path):
    """Write files, read them as one project; the images by service."""

    def read(files, *names, environ=(), **options):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        paths = [tmp_path / name for name in names or [next(iter(files))]]
        found = read_project(paths, dict(environ), **options)
        return {image.service: image.image for image in found.images}, found

    return read


WEB = """
services:
  web: {image: "nginx:${TAG:-1.27}"}
  app: {build: .}
  worker: {build: ., image: org/worker}
  arm: {image: redis, platform: linux/arm64}
"""


def test_images_of_services(project):
    images, found = project({"compose.yml": WEB})
    assert images == {"web": "nginx:1.27", "worker": "org/worker", "arm": "redis"}
    assert found.notes == ["app: built here"]
    assert [(image.service, image.platform, image.is_built) for image in found.images][1:] == [
        ("worker", None, True),
        ("arm", "linux/arm64", False),
    ]


def test_environment_over_dotenv_over_default(project):
    assert project({"compose.yml": WEB, ".env": "TAG=1.25\n"})[0]["web"] == "nginx:1.25"
    assert project({"compose.yml": WEB}, environ={"TAG": "1.20"})[0]["web"] == "nginx:1.20"


def test_env_files_take_the_place_of_dotenv(project, tmp_path):
    files = {"compose.yml": WEB, ".env": "TAG=1.25\n", "prod.env": "TAG=1.26\n"}
    assert project(files, "compose.yml", env_files=[tmp_path / "prod.env"])[0]["web"] == "nginx:1.26"


def test_later_files_change_earlier_ones(project):
    files = {
        "a.yml": "services: {web: {image: nginx:1, profiles: [p]}, db: {image: postgres:16}, old: {image: old}}",
        "b.yml": "services: {web: {image: nginx:2}, db: {environment: {A: b}}, extra: {image: extra}, "
        "old: {image: !reset null, build: .}}",
    }
    images, found = project(files, "a.yml", "b.yml", profiles=["p"])
    assert images == {"web": "nginx:2", "db": "postgres:16", "extra": "extra"}
    assert any("nginx:2 in" in note and "takes the place of nginx:1" in note for note in found.notes)


def test_profiles(project):
    text = """
services:
  web: {image: nginx}
  debug: {image: busybox, profiles: [debug, dev]}
  test: {image: alpine, profiles: [test]}
"""
    images, found = project({"compose.yml": text})
    assert images == {"web": "nginx"}
    assert found.notes == ["debug: only with --profile debug or dev", "test: only with --profile test"]
    assert set(project({"compose.yml": text}, profiles=["dev"])[0]) == {"web", "debug"}
    assert set(project({"compose.yml": text}, profiles=["*"])[0]) == {"web", "debug", "test"}
    assert set(project({"compose.yml": text}, environ={"COMPOSE_PROFILES": "test,dev"})[0]) == {"web", "debug", "test"}


def test_extends(project):
    files = {
        "compose.yml": """
services:
  base: {image: "base:$TAG", profiles: [never]}
  own: {extends: base}
  changed: {extends: {service: base}, image: mine}
  far: {extends: {service: thing, file: common/base.yml}}
""",
        "common/base.yml": "services: {thing: {extends: {service: deeper}}, deeper: {image: 'deep:${TAG}'}}",
    }
    images, _ = project(files, environ={"TAG": "3"})
    assert images == {"own": "base:3", "changed": "mine", "far": "deep:3"}


def test_include_has_variables_of_its_own(project):
    files = {
        "compose.yml": "include: [sub/compose.yml, {path: other/x.yml, env_file: x.env}]\n"
        "services: {web: {image: 'nginx:${TAG}'}}",
        ".env": "TAG=top\n",
        "x.env": "WHICH=x\n",
        "sub/compose.yml": "services: {db: {image: 'postgres:${TAG}-${SUB}'}}",
        "sub/.env": "TAG=inner\nSUB=sub\n",
        "other/x.yml": "services: {x: {image: 'x:${WHICH}'}}",
    }
    assert project(files)[0] == {"web": "nginx:top", "db": "postgres:top-sub", "x": "x:x"}


def test_anchors_and_merge_keys(project):
    text = """
x-base: &base {image: "redis:7", restart: always}
services:
  one: {<<: *base}
  two: {<<: *base, image: "redis:6"}
"""
    assert project({"compose.yml": text})[0] == {"one": "redis:7", "two": "redis:6"}


def test_stdin(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    class Stdin:
        buffer = io.BytesIO(b"services: {web: {image: nginx}}")

    monkeypatch.setattr(compose.sys, "stdin", Stdin)
    assert read_project([STDIN], {}).images[0].image == "nginx"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"c.yml": "services: {web: {image: 'nginx:${TAG:?which one}'}}"}, "service web: TAG must be set: which one"),
        ({"c.yml": "services: {web: {image: 'nginx:$TAG'}}"}, "needs TAG, which is not set"),
        ({"c.yml": "a: [b\n"}, "line 2"),
        ({"c.yml": "just words"}, "no Compose file"),
        ({"c.yml": "a: b"}, "no services"),
        ({"c.yml": "services: {web: {image: 5}}"}, "image must be text, not 5"),
        ({"c.yml": "services: {web: }"}, "nothing is said of it"),
        ({"c.yml": "services: {web: {extends: db}}"}, "extends db, which is not in"),
        ({"c.yml": "services: {a: {extends: b}, b: {extends: a}}"}, "circle"),
        ({"c.yml": "include: c.yml"}, "circle"),
        ({"c.yml": "include: ['https://example.com/x.git']"}, "only files are followed"),
        ({"c.yml": "services: {web: {image: !unknown x}}"}, "!unknown"),
        ({"c.yml": "services: {web: {image: \x00}}"}, "c.yml"),
    ],
)
def test_what_is_wrong_is_one_line(project, files, says):
    with pytest.raises(ComposeInvalid) as caught:
        project(files)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value).strip()
