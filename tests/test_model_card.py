"""The model card: metadata that the hub reads, figures with their intervals; and pushing, against a stand-in."""

from __future__ import annotations

import base64
import json
import re

import pytest
from huggingface_hub import ModelCard
from test_hub import Handler, hub, waits  # noqa: F401

from cryosentinel.cli import main
from cryosentinel.errors import HubError, InputError
from cryosentinel.hub import push_run
from cryosentinel.study.model_card import FIGURES, write_model_card

METRICS = {
    "test_iou@0.50_tta": {"value": 0.61234, "low": 0.5, "high": 0.7, "n": 120, "data": "simulated", "source": "x"},
    "test_iou@best_tta": {"value": 0.7, "low": None, "high": None, "n": 9, "data": "simulated", "reason": "3 blocks"},
    "val_iou@0.50_tta": {"value": None, "low": None, "high": None, "n": 0, "data": "simulated", "reason": "empty"},
    "parameters_total": {"value": 6_600_000.0},
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "quick"
    for name in (
        "checkpoints/soup.ckpt",
        "checkpoints/last.ckpt",
        "diagnostics/per_chip_val.parquet",
        "logs/config.yaml",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def test_the_card_is_the_hubs_and_every_figure_is_there_with_its_interval(run):
    card = ModelCard.load(write_model_card(run, METRICS, "lakes", "quick"))
    results = {(r.metric_name, r.dataset_split): r for r in card.data.eval_results}
    assert len(results) == 2, "a figure without a value has no place in the card"
    result = results[FIGURES["test_iou@0.50_tta"][2], "test"]
    assert result.metric_value == 0.6123 and result.metric_args == {"chips": 120, "interval_95": [0.5, 0.7]}
    assert "simulated" in result.dataset_name and "simulated" in card.data.tags and card.data.license == "apache-2.0"
    assert "0.6123 | 0.5000 to 0.7000 | 120" in card.content and "none: 3 blocks" in card.content
    assert "6.6 million" in card.content and "runs no code" in card.content
    assert "may be called one." in card.content
    counted = METRICS | {"other_water_truth/ponds called a lake": {"value": 0.75, "n": 8, "data": "simulated"}}
    assert "6 of 8 ponds" in write_model_card(run, counted, "lakes", "quick").read_text()
    real = {name: {**of, "data": "real"} for name, of in METRICS.items()}
    assert "simulated" not in write_model_card(run, real, "lakes", "quick").read_text()


def test_metrics_without_scores_make_no_card(run):
    with pytest.raises(InputError, match="no score"):
        write_model_card(run, {"n_chips/val": {"value": 1}}, "lakes", "quick")


class Taker(Handler):
    """The part of the hub's protocol that takes small files in one commit."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, self.path, body))
        if self.path == "/api/repos/create":
            return self.reply({"url": f"http://{self.headers['Host']}/someone/lakes", "id": "someone/lakes"})
        if self.path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            return self.reply({"files": [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.taken[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.reply(
                {
                    "commitOid": "a" * 40,
                    "commitUrl": f"http://{self.headers['Host']}/someone/lakes/commit/{'a' * 40}",
                    "success": True,
                }
            )
        return self.answer(404)

    def reply(self, value: dict) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def taker(monkeypatch):
    with hub({"models/someone/lakes": {}}) as server:
        server.RequestHandlerClass, server.taken = Taker, {}
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server


def test_pushing_is_a_dry_run_unless_asked(run, taker):
    write_model_card(run, METRICS, "lakes", "quick")
    told = push_run(run, "someone/lakes")
    assert not taker.requests and "quick/checkpoints/last.ckpt" not in told
    assert push_run(run, "someone/lakes", dry_run=False) == told
    assert taker.taken == {
        "README.md": (run / "README.md").read_bytes(), "quick/checkpoints/soup.ckpt": b"checkpoints/soup.ckpt",
        "quick/diagnostics/per_chip_val.parquet": b"diagnostics/per_chip_val.parquet",
        "quick/logs/config.yaml": b"logs/config.yaml",
    }  # fmt: skip
    assert {name: len(data) for name, data in taker.taken.items()} == told


def test_what_cannot_be_pushed_is_refused_before_anything_is_sent(run, taker, monkeypatch):
    with pytest.raises(HubError, match=re.escape("README.md")):
        push_run(run, "someone/lakes", dry_run=False)
    write_model_card(run, METRICS, "lakes", "quick")
    with pytest.raises(HubError, match="owner/name"):
        push_run(run, "lakes", dry_run=False)
    assert not taker.requests
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="nothing was sent"):
        push_run(run, "someone/lakes", dry_run=False)


def test_the_command_writes_the_card_and_says_what_would_go(run, tmp_path, capsys):
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    (tmp_path / "timings.json").write_text(json.dumps({"fit": {"preset": "quick"}}))
    assert main(["card", str(run), "--study", str(tmp_path), "--push", "someone/lakes"]) == 0
    said = capsys.readouterr().out
    assert (run / "README.md").is_file() and "Dry run" in said and "quick/checkpoints/soup.ckpt" in said
