"""What tells hosts apart in results."""

import platform

from opbench.device.environment import collect_environment
from opbench.device.identity import Identity, host_of
from opbench.host.label import HOST_VARIABLE, host_label


def test_a_host_is_told_and_not_named_unless_asked_to(monkeypatch):
    monkeypatch.delenv(HOST_VARIABLE, raising=False)
    labels = set()
    for name in ("node-17", "node-18", "node-17"):
        monkeypatch.setattr(platform, "node", lambda name=name: name)
        labels.add(host_label())
    assert len(labels) == 2
    assert all(len(label) == 8 and "node" not in label for label in labels)
    monkeypatch.setattr(platform, "node", lambda: "")
    assert host_label() == ""
    monkeypatch.setenv(HOST_VARIABLE, "rack 3\nnode 17")
    assert host_label() == "rack 3 node 17"


def test_the_environment_has_it_and_no_identity_has(monkeypatch):
    monkeypatch.setenv(HOST_VARIABLE, "node-17")
    environment = collect_environment("cpu")
    assert host_of(environment) == "node-17"
    assert "node-17" not in Identity.of(environment, code=True).parts.values()
    assert host_of({}) == ""
