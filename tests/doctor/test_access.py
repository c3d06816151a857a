"""What is said of certificates, users and rules."""

import time

import pytest

from registry_cache.access.authority import Authority
from registry_cache.doctor import access
from registry_cache.settings.access import AccessRule, LimitSettings
from registry_cache.settings.model import Settings
from registry_cache.settings.upstreams import UpstreamSettings
from tests.access.test_logins import hashed


@pytest.mark.parametrize(
    ("days", "state", "text"),
    [
        (-1, "broken", "begins in"),
        (700, "ok", "125 d left"),
        (815, "warning", "10 d left"),
        (900, "broken", "ended 75 d"),
    ],
)
def test_how_long_a_certificate_will_do(tmp_path, days, state, text):
    certificate, _ = Authority.in_directory(tmp_path)[0].server(["cache.corp"])
    (tmp_path / "cert.pem").write_bytes(certificate)
    settings = Settings.model_construct(tls_cert=tmp_path / "cert.pem")
    (check,) = access.certificates(settings, time.time() + days * 86400)
    assert (check.state, text in check.text) == (state, True), check
    (tmp_path / "cert.pem").write_text("no PEM")
    (check,) = access.certificates(settings, time.time())
    assert check.state == "broken"
    assert list(access.certificates(Settings.model_construct(tls_cert=None), 0.0)) == []


def test_of_clients_authorities_each_is_looked_at(tmp_path):
    (tmp_path / "old").mkdir()
    Authority.in_directory(tmp_path / "old")
    Authority.in_directory(tmp_path)
    (tmp_path / "ca.pem").write_bytes((tmp_path / "ca.pem").read_bytes() + (tmp_path / "old" / "ca.pem").read_bytes())
    settings = Settings.model_construct(client_ca=tmp_path / "ca.pem")
    found = [*access.certificates(settings, time.time() + 3640 * 86400)]
    assert [(check.name, check.state) for check in found] == [("client CA", "warning")] * 2


def test_users_that_rules_name_are_there(tmp_path):
    file = tmp_path / "htpasswd"
    file.write_text(f"ci:{hashed('x')}\n")
    settings = Settings.model_construct(
        htpasswd=file,
        access=[AccessRule(users=["ci", "gone"]), AccessRule(users=["*"]), AccessRule()],
        limits=[LimitSettings(users=["left"], flights=1)],
    )
    assert [(check.state, check.text) for check in access.users(settings)] == [
        ("ok", f"{file}: 1"),
        ("warning", "ACCESS: rule 1 is for 'gone', not in HTPASSWD"),
        ("warning", "LIMITS: table 1 is for 'left', not in HTPASSWD"),
    ]
    file.write_text("ci:plain\n")
    (check,) = access.users(settings)
    assert (check.state, "line 1" in check.text, "plain" in check.text) == ("broken", True, False)
    assert [*access.users(Settings.model_construct())] == []


@pytest.mark.parametrize(
    ("given", "never"),
    [
        ([{"users": ["ci"]}, {"networks": ["10.0.0.0/8"]}], []),
        ([{}, {"users": ["ci"]}], [2]),
        ([{"users": ["ci"]}, {"users": ["ci"], "repositories": ["ghcr.io/**"]}], [2]),
        ([{"users": ["ci"], "repositories": ["ghcr.io/**"]}, {"users": ["ci"]}], []),
        ([{"networks": ["10.0.0.0/8"]}, {"networks": ["10.0.0.0/8"], "users": ["ci"]}, {"users": ["ci"]}], [2]),
        ([{"uids": [1000]}, {"oidc": {"issuer": "ci", "sub": "a"}}, {"oidc": {"issuer": "ci", "sub": "b"}}], []),
        ([{"uids": [1000]}, {"uids": [1000], "users": ["ci"]}], [2]),
        ([{"repositories": ["ghcr.io/**"]}, {"users": ["ci"], "repositories": ["ghcr.io/**"]}], [2]),
    ],
)
def test_rules_that_never_decide(given, never):
    rules = [AccessRule(**rule) for rule in given]
    found = access.rules(Settings.model_construct(access=rules, allow_unlisted=["ghcr.io"]))
    assert [check.text for check in found if check.state == "warning"] == [
        f"ACCESS: rule {number} never decides: rule 1 fits whatever it fits" for number in never
    ]


def test_registries_that_are_not_served():
    patterns = ["**", "*/x", "index.docker.io/x", "docker.io/x", "quay.io/x", "a.gcr.io/x", "gchr.io/org/**"]
    rules = [AccessRule(repositories=patterns)]
    settings = Settings.model_construct(
        access=rules, allow_unlisted=["*.gcr.io"], upstreams={"quay.io": UpstreamSettings()}
    )
    assert [check.text for check in access.rules(settings)] == [
        "ACCESS: rule 1 names gchr.io, which is not served here"
    ]


@pytest.mark.parametrize(
    ("rule", "is_told"),
    [
        ({"users": ["ci"], "repositories": ["ghcr.io/org/**"]}, True),
        ({"users": ["ci"], "repositories": ["ghcr.io/org/**", "docker.io/**"]}, False),
        ({"users": ["ci"], "repositories": ["ghcr.io/org/**"], "deny": True}, False),
        ({"networks": ["10.0.0.0/8"], "repositories": ["ghcr.io/**"], "quiet": True}, False),
        ({"users": ["ci"]}, False),
    ],
)
def test_rules_that_allow_what_a_registry_decides(rule, is_told):
    upstreams = {"ghcr.io": UpstreamSettings(access="forward")}
    found = [*access.rules(Settings.model_construct(access=[AccessRule(**rule)], upstreams=upstreams))]
    assert [check.text for check in found] == (
        ["ACCESS: rule 1 allows what ghcr.io decides: access is forward there"] if is_told else []
    )
