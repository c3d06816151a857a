"""What the proof of a fleet counts and deploys; the proof itself is ``make verify-fleet``, minutes long."""

import pytest
import yaml

from tests.proof.fleet.__main__ import parse_arguments
from tests.proof.fleet.site import asked_of
from tests.proof.recipe import Stack

DIGEST = "sha256:" + "a" * 64


def record(**changed):
    usual = {"kind": "blob", "method": "GET", "status": 200, "repository": "shop/web", "reference": DIGEST}
    return usual | {"bytes_sent": 0, "counted": False} | changed


def test_what_upstream_sent_is_counted_and_what_it_only_redirected_or_confirmed_is_not():
    blobs = [record(bytes_sent=70), record(status=206, bytes_sent=30), record(status=307), record(method="HEAD")]
    pulls = [record(kind="manifest", reference="1.0", counted=counted) for counted in (True, False)]
    asked = asked_of({"records": blobs + pulls})
    assert (dict(asked.manifests), dict(asked.blobs)) == ({"shop/web:1.0": 1}, {DIGEST: 2})
    assert (asked.cost, asked.most, asked.blob_bytes) == ((1, 2), 2, 100)


def test_every_service_of_the_stack_runs_on_every_node():
    document = {"services": {"web": {"image": "shop/web:1.0", "deploy": {"restart_policy": {"condition": "none"}}}}}
    stack = Stack(yaml.safe_dump(document), {"web": "shop/web:1.0"}, {}, {}).on_every_node()
    deploy = yaml.safe_load(stack.text)["services"]["web"]["deploy"]
    assert deploy == {"restart_policy": {"condition": "none"}, "mode": "global"}


def test_a_report_is_of_the_whole_proof(capsys):
    for part in (["--short"], ["--only", "killed"]):
        with pytest.raises(SystemExit) as ended:
            parse_arguments(["--report", ".", *part])
        assert ended.value.code == 2
    assert "whole proof" in capsys.readouterr().err
