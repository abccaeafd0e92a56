"""The real libraries on a GPU: the one thing that the stand-ins can't show.

`OPREL_TEST_EXLLAMA_PYTHON` is the interpreter of an environment with the engine, `OPREL_TEST_EXLLAMA_MODEL` the folder
of a small model (EXL3 or FP16 for exllamav3; EXL2, GPTQ or FP16 for exllamav2).
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.exllama_driver import driver_for, make_model

from oprel.hardware import detect_hardware
from oprel.schema import ChatRequest, CompletionRequest, LoadOptions, Message, Sampling, Text, TextPart

PYTHON = os.environ.get("OPREL_TEST_EXLLAMA_PYTHON", "")
MODEL = os.environ.get("OPREL_TEST_EXLLAMA_MODEL", "")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (PYTHON and MODEL), reason="no environment with a real ExLlama, or no model for it, is named"
    ),
    pytest.mark.timeout(3600),
]


@pytest.mark.parametrize("name", ["exllamav2", "exllamav3"])
def test_it_answers(tmp_path: Path, name: str) -> None:
    """Loads the model, completes greedily twice alike, counts, stops at a string, chats where there is a template."""
    driver: Any = driver_for(tmp_path / "run", Path(PYTHON), name=name, start_timeout_s=600.0)
    hardware = msgspec.structs.replace(detect_hardware(), engines=driver.probe())
    if not (available := driver.availability(hardware)).usable:
        pytest.skip(available.reason)
    folder = Path(MODEL)
    config = json.loads((folder / "config.json").read_text())
    kind = config.get("quantization_config", {}).get("quant_method", "safetensors")
    model = make_model(
        path=str(next(folder.glob("*.safetensors"))),
        weights_bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        format=kind,
        quantization="" if kind == "safetensors" else kind.upper(),
        context_tokens=config.get("max_position_embeddings"),
    )
    if not (support := driver.supports(model)).supported:
        pytest.skip(support.reason)

    async def work() -> None:
        engine = await driver.start(driver.plan(model, LoadOptions(context_tokens=1024), hardware))
        try:
            request = CompletionRequest("Once upon a time", Sampling(max_tokens=24, temperature=0.0), logprobs=2)
            first, second = [await _text(engine.complete(request)) for _ in range(2)]
            assert first == second != ""
            stop = first[4:8]
            stopped = CompletionRequest(request.prompt, Sampling(max_tokens=24, temperature=0.0, stop=(stop,)))
            assert await _text(engine.complete(stopped)) == first[: first.index(stop)]
            text = "Hello, wörld! 🙂"
            assert (await engine.detokenize(await engine.tokenize(text))).strip() == text
            if engine.capabilities.chat:
                chat = ChatRequest((Message("user", (TextPart("Say hello."),)),), Sampling(max_tokens=16))
                assert await _text(engine.chat(chat))
            many = [engine.complete(request) for _ in range(engine.plan.slots)]
            assert set(await asyncio.gather(*map(_text, many))) == {first}
        finally:
            await engine.stop()

    asyncio.run(work())


async def _text(stream: Any) -> str:
    return "".join([event.text async for batch in stream for event in batch if isinstance(event, Text)])
