"""The benchmarks run and print what they promise; how fast is not for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import brokers, exchange, executors, imports, launch, payload, scale
from benchmarks.figures import Figure, table

OURS = ("http on memory", "http on SQLite")
ROOT = Path(__file__).parents[2]


def run(module: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout


@pytest.mark.slow
def test_exchange_compares_the_hosted_exchange_with_its_skeleton() -> None:
    small = ("--rounds", "1", "--calls", "3", "--seconds", "0.1", "--payloads", "5000")
    result = json.loads(run("benchmarks.exchange", *small))
    samples = result["contestants"]
    assert set(samples) | set(result["not_measured"]) == {
        "local",
        "http on memory",
        "http on SQLite",
        "skeleton on memory",
        "skeleton on SQLite",
        "redis lists",
        "NATS",
    }
    assert all(sample["actions_per_s"] > 0 for sample in samples.values())
    assert all(samples[name]["payload_ms"]["5000"] > 0 for name in OURS)
    assert set(samples["local"]["cpu_us_per_action"]) == {"client"}
    assert set(samples["http on SQLite"]["cpu_us_per_action"]) == {
        "client",
        "server",
        "agent",
    }
    assert {
        "http on memory / skeleton on memory",
        "http on SQLite / skeleton on SQLite",
    } <= set(result["ratios"])
    assert all(ratio["round_trip"] > 0 for ratio in result["ratios"].values())
    names = {figure.name for figure in exchange.figures(result)}
    assert "http on SQLite / skeleton on SQLite: round trip" in names
    assert "http on memory: server CPU per message" in names


def test_a_peer_that_is_not_installed_is_told_and_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    assert brokers.missing("no-such-server", "json") == (
        "there is no no-such-server on this machine"
    )
    result = {"contestants": {}, "ratios": {}, "not_measured": {"NATS": "no server"}}
    text = table("exchange", exchange.figures(result))
    assert text.splitlines()[-1].split() == ["NATS:", "no", "server", "not", "measured"]


@pytest.mark.slow
def test_scale_compares_sizes_with_the_smallest_of_the_same_round() -> None:
    small = ("--rounds", "1", "--calls", "3", "--seconds", "0.1", "--idle", "0.1")
    result = json.loads(run("benchmarks.scale", *small, "--sizes", "1", "20"))
    assert set(result["sizes"]) == {"1", "20"}
    assert set(result["ratios"]) == {"20"}
    assert result["ratios"]["20"]["server_us_per_message_full"] > 0
    names = {figure.name for figure in scale.figures(result)}
    assert "20 mailboxes / the fewest, attached: server CPU" in names


@pytest.mark.slow
def test_payload_compares_the_hosted_exchange_with_a_bare_relay() -> None:
    small = ("--rounds", "1", "--sizes", "1000,600000")
    result = json.loads(run("benchmarks.payload", *small))
    assert set(result["rates"]) == {"http on memory", "http on SQLite", "relay"}
    assert min(min(rates.values()) for rates in result["rates"].values()) > 0
    assert set(result["ratios"]["http on SQLite"]) == {"1000", "600000"}
    names = {figure.name for figure in payload.figures(result)}
    assert "http on SQLite / relay: 600,000" in names


@pytest.mark.slow
def test_executors_compares_an_agent_with_a_task_of_the_bare_engine() -> None:
    small = ("--rounds", "1", "--engines", "local")
    result = json.loads(run("benchmarks.executors", *small))
    sample = result["engines"]["local"]
    assert sample["agent_cold_s"] > sample["agent_warm_s"] > 0
    assert sample["bare_cold_s"] > sample["bare_warm_s"] > 0
    assert sample["warm_ratio"] > 0
    assert result["looking"].keys() == {"validate_ms", "preview_ms"}
    names = {figure.name for figure in executors.figures(result)}
    assert {"HTEX, local, cold: ratio", "preview"} <= names


def test_launch_times_and_weighs_agents_on_both_exchanges() -> None:
    result = json.loads(run("benchmarks.launch", "--rounds", "1", "--agents", "3"))
    exchanges = result["exchanges"]
    assert set(exchanges) == {"local", "http"}
    assert all(sample["launch_s"] > 0 for sample in exchanges.values())
    assert all(sample["python_kb"] > 0 for sample in exchanges.values())
    assert "server_kb" in exchanges["http"]
    names = {figure.name for figure in launch.figures(result)}
    assert "http: memory per mailbox, server" in names


def test_imports_tells_what_each_import_loads() -> None:
    result = json.loads(run("benchmarks.imports", "--rounds", "1"))
    found = result["imports"]
    assert found["nothing"]["modules"] < found["asyncio"]["modules"]
    assert found["asyncio"]["modules"] < found["academy.agent"]["modules"]
    assert found["academy.agent"]["import_s"] > 0
    assert found["academy.manager"]["process_s"] > 0
    names = {figure.name for figure in imports.figures(result)}
    assert "import academy.agent" in names


def test_all_parts_are_shown_in_a_table_and_kept_as_json(tmp_path: Path) -> None:
    kept = tmp_path / "folder" / "figures.json"
    shown = run("benchmarks", "imports", "--rounds", "1", "--json", str(kept))
    assert "import academy.agent" in shown
    results = json.loads(kept.read_text())
    assert set(results) == {"machine", "imports"}


@pytest.mark.parametrize("value", [0.5, 1.0])
def test_the_table_shows_each_figure_beside_its_aim(value: float) -> None:
    text = table("launch", [Figure("local", value, "s", ("<=", 0.5)), Figure("all", 3)])
    title, _, first, second = text.splitlines()
    assert title == "launch"
    assert first.endswith("reached" if value <= 0.5 else "missed")
    assert second.split() == ["all", "3"]
