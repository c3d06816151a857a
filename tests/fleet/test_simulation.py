"""A fleet in virtual time: one GET a digest for all hosts, whatever their number, as with six real replicas."""

import asyncio
import json
import subprocess
import sys

import pytest

from tests.fleet.conftest import REPOSITORY
from tests.fleet.simulation.world import GIGABIT, Plan, simulate

MEGABYTE = 1_000_000


def test_a_hundred_hosts_cost_upstream_one_get_a_layer():
    made = simulate(Plan(hosts=100, replicas=100, image_bytes=50 * MEGABYTE))
    assert (made.upstream_gets, made.most_gets_of_one, made.done) == (10, 1, 100)
    assert (made.upstream_bytes, made.peer_bytes) == (50 * MEGABYTE, 99 * 50 * MEGABYTE)
    assert (made.redis_calls["claim"], made.redis_calls["release"]) == (1000, 10)
    assert (made.led, made.followed, made.takeovers, made.alone) == (10, 990, 0, 0)
    assert made.redirected


def test_a_narrow_tree_that_is_deeper_than_peers_send_on_costs_no_second_get():
    made = simulate(Plan(hosts=30, replicas=30, layers=3, image_bytes=600 * MEGABYTE, followers=1))
    assert (made.upstream_gets, made.takeovers, made.done) == (3, 0, 30)


def test_a_thousand_hosts_behind_twenty_replicas_are_one_get_a_layer():
    made = simulate(Plan(hosts=1000, replicas=20, layers=3, image_bytes=30 * MEGABYTE, replica_rate=10 * GIGABIT))
    assert (made.upstream_gets, made.done, made.alone) == (3, 1000, 0)
    assert (made.peer_bytes, made.client_bytes) == (19 * 30 * MEGABYTE, 1000 * 30 * MEGABYTE)
    assert made.redis_calls["claim"] == 20 * 3  # by replicas, not by hosts


def test_leaders_that_die_cost_a_get_more_for_what_they_led_and_no_host_beside_their_own():
    made = simulate(Plan(hosts=20, replicas=20, image_bytes=2000 * MEGABYTE, killed=1))
    assert made.done == 19
    assert 10 < made.upstream_gets <= 10 + 3  # a host pulls three layers at a time
    assert made.takeovers == made.upstream_gets - 10
    assert made.client_bytes >= 19 * 2000 * MEGABYTE


def test_without_redis_each_replica_fetches_for_itself():
    made = simulate(Plan(hosts=5, replicas=5, layers=2, image_bytes=2 * MEGABYTE, rest_calls=1e9))
    assert (made.upstream_gets, made.alone, made.done) == (10, 10, 5)


async def test_six_real_replicas_agree_with_six_of_the_simulation(hub, start_replica, make_blob, patient):
    members = [await start_replica(prefetch_concurrency=0) for _ in range(6)]
    size = 200_000
    blobs = [await make_blob(size) for _ in range(4)]
    hub.reset_counters()
    await asyncio.gather(
        *(member.blob(REPOSITORY, digest) for digest, _ in blobs for member in members for _ in range(3))
    )
    for member in members:
        await member.cache.settled()
    made = await asyncio.to_thread(
        simulate, Plan(hosts=18, replicas=6, layers=4, image_bytes=4 * size, at_a_time=4, spread_seconds=0)
    )
    counted = [member.fleet.counts.figures() for member in members]

    def of_all(name):
        return sum(one[name] for one in counted)

    assert not of_all("alone"), "the machine was too busy for Redis to answer in time"
    assert hub.counters.blob_gets() == made.upstream_gets == 4
    assert of_all("upstream_bytes") == made.upstream_bytes == 4 * size
    assert of_all("peer_bytes") == made.peer_bytes == 5 * 4 * size
    assert of_all("led") == made.led


@pytest.mark.slow
def test_its_command_prints_a_table_or_json_and_says_what_redis_cannot_do():
    def run(*words):
        line = [sys.executable, "-m", "tests.fleet.simulation", "--size", "0.01", *words]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)

    table = run("--hosts", "6")
    assert table.returncode == 0, table.stderr
    assert "| GETs upstream | 10 (most of one digest: 1) |" in table.stdout
    told = json.loads(run("--hosts", "6", "--replicas", "3", "--json").stdout)
    assert (told["plan"]["replicas"], told["outcome"]["upstream_gets"]) == (3, 10)
    too_many = run("--hosts", "10000", "--replicas", "10000")
    assert (too_many.returncode, too_many.stdout) == (2, "")
    assert "30,000 times a second" in too_many.stderr
