"""`oprel drivers check vllm` on a real vLLM: the contract and both dialects, against the documents, in one report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.models import CHAT_MODEL, EMBED_MODEL
from support.servers import clean_environment, run_oprel
from support.vllm_real import fill_trees

_LIMIT_S = 1500

pytestmark = [pytest.mark.vllm_full, pytest.mark.timeout(_LIMIT_S + 60)]


def test_vllm_keeps_the_contract_and_the_documents(python: Path, tmp_path: Path) -> None:
    environ = clean_environment(
        tmp_path,
        OPREL_VLLM_PYTHON=str(python),
        OPREL_TREES_DIR=str(fill_trees(tmp_path / "trees", tmp_path / "state")),
        OPREL_MODELS=str(tmp_path / "models"),
        OPREL_STATE_DIR=str(tmp_path / "state"),
    )
    flags = ("--json", "--time-limit", str(_LIMIT_S))
    done = run_oprel("drivers", "check", "vllm", *flags, environ=environ, limit_s=_LIMIT_S + 30, cwd=tmp_path)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    failed = {rule["text"]: rule["detail"] for rule in report["rules"] if rule["outcome"] == "fails"}
    assert failed == {}
    assert (report["passed"], report["problems"], done.returncode) == (True, [], 0)
    assert set(report["models"]) == {CHAT_MODEL, EMBED_MODEL}
    holding = {rule["text"] for rule in report["rules"] if rule["outcome"] == "holds"}
    assert {"OpenAI: chat streamed", "OpenAI: tools", "OpenAI: json schema", "OpenAI: embeddings"} <= holding
    assert {"Ollama: chat", "Ollama: embed", "death is noticed", "stopping under load ends the streams"} <= holding
