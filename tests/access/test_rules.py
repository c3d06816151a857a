"""Rules against a second opinion: random rules, principals and repositories, decided by hand as well."""

import fnmatch
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_cache.access.rules import Decision, Principal, Rule, decide, may_pull_anything, repository_pattern

REGISTRIES = ("docker.io", "ghcr.io", "quay.io")
NAMES = ("library/nginx", "library/alpine", "org/app", "org/team/app", "other/app", "org")
PATTERNS = (
    "**", "docker.io/**", "ghcr.io/org/**", "ghcr.io/org/*", "docker.io/library/*", "*/org/app", "quay.io/*/app",
    "docker.io/nginx", "docker.io/*", "ghcr.io/org/app",
)  # fmt: skip
NETWORKS = ("10.1.0.0/16", "10.0.0.0/8", "192.0.2.7", "fd00::/8")
ADDRESSES = ("10.1.2.3", "10.2.0.1", "192.0.2.7", "192.0.2.8", "fd00::1", "::ffff:10.1.0.1", "")
USERS = ("ci", "dev", "*")
CERTIFICATES = ("*.nodes.corp", "a.nodes.corp", "build")
SHOWN = ("a.nodes.corp", "A.Nodes.Corp", "b.nodes.corp", "nodes.corp", "build")


def lists(words):
    return st.none() | st.lists(st.sampled_from(words), min_size=1, max_size=3)


RULES = st.lists(
    st.fixed_dictionaries(
        {
            "networks": lists(NETWORKS),
            "users": lists(USERS),
            "certificates": lists(CERTIFICATES),
            "identified": st.booleans(),
            "repositories": st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3),
            "deny": st.booleans(),
        }
    ),
    max_size=6,
)
PRINCIPALS = st.builds(
    lambda address, certificates, user: Principal(address, certificates, user),  # noqa: PLW0108 -- no other fields
    st.sampled_from(ADDRESSES),
    st.lists(st.sampled_from(SHOWN), max_size=2).map(tuple),
    st.sampled_from(("", "ci", "dev", "nobody")),
)


def inside(address, network):
    try:
        found = ipaddress.ip_address(address.removeprefix("::ffff:"))
    except ValueError:
        return False
    return found in ipaddress.ip_network(network)


def named(pattern, repository):
    """Segment by segment, which is not how the rules do it."""
    registry, _, name = pattern.partition("/")
    if registry == "docker.io" and "/" not in name and name != "**":
        pattern = f"docker.io/library/{name}"
    wanted, given_parts = pattern.split("/"), repository.split("/")

    def fits(i, j):
        if i == len(wanted):
            return j == len(given_parts)
        if wanted[i] == "**":
            return any(fits(i + 1, k) for k in range(j + 1, len(given_parts) + 1))
        return j < len(given_parts) and fnmatch.fnmatchcase(given_parts[j], wanted[i]) and fits(i + 1, j + 1)

    return fits(0, 0)


def by_hand(rules, who, repository):
    for number, rule in enumerate(rules, 1):
        conditions = [
            rule["networks"] is None or any(inside(who.address, network) for network in rule["networks"]),
            rule["users"] is None or (who.user != "" and ("*" in rule["users"] or who.user in rule["users"])),
            rule["certificates"] is None
            or any(fnmatch.fnmatchcase(n.lower(), p) for p in rule["certificates"] for n in who.certificates),
            not rule["identified"] or bool(who.user or who.certificates),
            any(named(pattern, repository) for pattern in rule["repositories"]),
        ]
        if all(conditions):
            return Decision(not rule["deny"], number)
    return Decision(allowed=False, rule=0)


@given(RULES, PRINCIPALS, st.sampled_from(REGISTRIES), st.sampled_from(NAMES))
def test_the_first_rule_that_fits_decides(rules, who, registry, name):
    repository = f"{registry}/{name}"
    decision = decide([Rule(**rule) for rule in rules], who, repository)
    assert decision == by_hand(rules, who, repository)


@given(RULES, PRINCIPALS, st.sampled_from(REGISTRIES), st.sampled_from(NAMES))
def test_who_may_pull_something_may_pull_anything(rules, who, registry, name):
    made = [Rule(**rule) for rule in rules]
    if decide(made, who, f"{registry}/{name}").allowed:
        assert may_pull_anything(made, who)


@given(RULES, PRINCIPALS, st.sampled_from(REGISTRIES), st.sampled_from(NAMES))
def test_a_rule_that_is_added_at_the_end_takes_nothing_away(rules, who, registry, name):
    made = [Rule(**rule) for rule in rules]
    before = decide(made, who, f"{registry}/{name}")
    after = decide([*made, Rule()], who, f"{registry}/{name}")
    assert after == before or (before.rule == 0 and after == Decision(allowed=True, rule=len(rules) + 1))


def test_without_rules_nobody_may():
    assert decide([], Principal("127.0.0.1", ("a",), "ci"), "docker.io/library/nginx") == Decision(allowed=False)


@pytest.mark.parametrize(
    "pattern",
    ["index.docker.io/secret/**", "docker.io:443/secret/**", "registry-1.docker.io/secret/*"],
)
def test_a_registry_counts_by_each_of_its_names(pattern):
    rules = [Rule(repositories=[pattern], deny=True), Rule()]
    assert decide(rules, Principal("127.0.0.1"), "docker.io/secret/app") == Decision(allowed=False, rule=1)


@pytest.mark.parametrize(("network", "address"), [
    ("::ffff:10.0.0.0/104", "10.1.2.3"), ("::ffff:192.0.2.7", "192.0.2.7"), ("::ffff:10.0.0.0/104", "::ffff:10.1.2.3"),
])  # fmt: skip
def test_mapped_networks_are_of_ipv4_addresses(network, address):
    rules = [Rule(networks=[network], deny=True), Rule()]
    assert not decide(rules, Principal(address), "docker.io/secret/app").allowed
    assert decide(rules, Principal("192.0.2.99"), "docker.io/secret/app").allowed


@pytest.mark.parametrize(
    "text",
    [
        "docker.io/secret/app:1", "docker.io/secret/app/", "docker.io//app", "registry.corp:5443/x/**",
        "*:5000/x", "docker.io/secret/*:1",
    ],
)  # fmt: skip
def test_patterns_that_no_image_could_fit_are_refused(text):
    with pytest.raises(ValueError, match="allowed are"):
        repository_pattern(text)


@pytest.mark.parametrize(
    "text", ["nginx", "library/nginx", "", "docker.io", "docker.io/", "Docker.io/x", "a b/c", "docker.io/x?"]
)
def test_what_is_no_pattern_is_said(text):
    with pytest.raises(ValueError, match="allowed are"):
        repository_pattern(text)


def test_what_a_principal_is_called():
    assert (Principal("10.0.0.1").name, Principal("10.0.0.1").auth) == ("10.0.0.1", "none")
    assert (Principal("10.0.0.1", ("n",)).name, Principal("10.0.0.1", ("n",)).auth) == ("n", "certificate")
    assert (Principal("10.0.0.1", ("n",), "ci").name, Principal("10.0.0.1", ("n",), "ci").auth) == ("ci", "login")


def test_wrong_logins_count_for_a_host_or_a_user_of_this_one():
    assert Principal("10.0.0.1").origin == "10.0.0.1"
    assert Principal("2001:db8::1").origin == Principal("2001:db8::2").origin
    assert Principal("", uid=1000).origin != Principal("", uid=1001).origin


def test_a_name_in_a_certificate_is_compared_without_case_in_ascii_alone():
    rule = Rule(certificates=["kube.*.corp"])
    assert rule.is_for(Principal("", ("KUBE.a.corp",)))
    assert not rule.is_for(Principal("", ("\N{KELVIN SIGN}ube.a.corp",)))
