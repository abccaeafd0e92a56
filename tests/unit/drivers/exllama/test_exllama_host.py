"""The ExLlama host over its socket: what it answers, with stand-ins for the libraries."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.exllama_host import RunningHost, running_host, start_host
from support.exllama_python import ANSWER, TEMPLATE, write_model

pytest.importorskip("jinja2", reason="chat templates are rendered by jinja2, which an engine's environment has")

ENGINES = ["exllamav2", "exllamav3"]


@pytest.fixture(scope="module", params=ENGINES)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHost]:
    """Shared: requests must leave it as they found it."""
    packages = ("torch", "exllamav2", "exllamav3", "lmformatenforcer")
    with running_host(tmp_path_factory.mktemp(request.param), engine=request.param, packages=packages) as host:
        yield host


def error_of(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    return found


class TestAnswers:
    def test_a_chat_is_streamed_in_openai_s_shape(self, host: RunningHost) -> None:
        stream = host.chat("hello")
        assert stream.text == ANSWER
        assert (stream.reason, stream.is_done, stream.error) == ("stop", True, None)
        first, last = stream.chunks[0], stream.chunks[-1]
        assert first["object"] == "chat.completion.chunk"
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert last["choices"] == []
        prompt = len("user\nhello\nassistant\n") + 3
        assert last["usage"] == {
            "prompt_tokens": prompt,
            "completion_tokens": len(ANSWER.encode()) + 1,  # the token that ends it counts
            "total_tokens": prompt + len(ANSWER.encode()) + 1,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        assert last["timings"]["prompt_ms"] == 2.0

    def test_a_whole_answer_says_the_same(self, host: RunningHost) -> None:
        answer = host.post("/v1/chat/completions", messages=[{"role": "user", "content": "hi"}], temperature=0).json()
        (choice,) = answer["choices"]
        assert choice["message"] == {"role": "assistant", "content": ANSWER}
        assert choice["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == len(ANSWER.encode()) + 1

    def test_usage_is_told_when_asked_for(self, host: RunningHost) -> None:
        assert host.complete(max_tokens=3, stream_options=None).usage is None

    def test_a_raw_prompt_of_text_or_tokens(self, host: RunningHost) -> None:
        assert host.complete("Tell me", max_tokens=4).text == "Once"
        assert host.jobs[-1]["prompt"] == "Tell me"
        assert host.complete([72, 105], max_tokens=4).text == "Once"
        assert (host.jobs[-1]["prompt"], host.jobs[-1]["ids"]) == ("Hi", 2)

    def test_progress_of_the_prompt_is_told_when_asked_for(self, host: RunningHost) -> None:
        stream = host.complete("a" * 100, max_tokens=2, return_progress=True)
        progress = [chunk["prompt_progress"] for chunk in stream.chunks if "prompt_progress" in chunk]
        assert progress == [{"total": 100, "cache": 0, "processed": 99}]

    def test_the_limit_of_tokens_is_exact_and_cuts_no_character(self, host: RunningHost) -> None:
        """The answer's 37th to 40th token are one character."""
        before = ANSWER[: ANSWER.index("🙂")]
        stream = host.complete(max_tokens=len(before) + 2)
        assert (stream.text, stream.reason) == (before, "length")
        assert stream.usage is not None
        assert stream.usage["completion_tokens"] == len(before) + 2

    def test_characters_come_whole_however_tokens_cut_them(self, host: RunningHost) -> None:
        assert "🙂" in host.complete().pieces

    def test_a_stop_string_across_tokens_ends_the_text_before_it(self, host: RunningHost) -> None:
        stream = host.complete(stop=["a prince", "never"])
        assert (stream.text, stream.reason) == (ANSWER[: ANSWER.index("a prince")], "stop")
        assert stream.choices[-1]["stop_reason"] == "a prince"

    def test_what_only_looked_like_a_stop_string_is_text(self, host: RunningHost) -> None:
        """The end of the answer is held back for a stop string that never comes; the token that ends it isn't text."""
        stream = host.complete(stop=["laughed. And"])
        assert stream.text == ANSWER
        assert stream.reason == "stop"

    def test_all_of_the_model_s_stop_tokens_end_it(self, host: RunningHost) -> None:
        """generation_config.json names one more than config.json."""
        host.complete(max_tokens=1)
        assert {"257", "259"} <= set(host.jobs[-1]["stops"])

    def test_empty_stop_strings_are_dropped(self, host: RunningHost) -> None:
        assert host.complete(stop=["", "time"]).text == "Once upon a "

    def test_tokens_and_text(self, host: RunningHost) -> None:
        assert host.post("/tokenize", content="hé<|im_end|>").json() == {"tokens": [104, 195, 169, 259]}
        assert host.post("/detokenize", tokens=[104, 195, 169, 259]).json() == {"content": "hé<|im_end|>"}
        assert host.post("/detokenize", tokens=[]).json() == {"content": ""}

    def test_the_prompt_can_be_seen(self, host: RunningHost) -> None:
        messages = [{"role": "system", "content": "Be."}, {"role": "user", "content": [{"type": "text", "text": "Hö"}]}]
        told = host.post("/apply-template", messages=messages).json()
        assert told == {
            "prompt": "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nHö<|im_end|>\n<|im_start|>assistant\n"
        }

    def test_facts(self, host: RunningHost) -> None:
        props = host.client.get("/props").json()
        engine = host.client.get("/v1/models").json()["data"][0]["owned_by"]
        assert (props["engine"], props["context_tokens"], props["total_slots"]) == (engine, 512, 2)
        assert props["version"] == {"exllamav2": "0.3.2", "exllamav3": "1.6.5"}[engine]
        able = props["capabilities"]
        assert able["chat"] and able["complete"] and able["json_schema"] and able["logprobs"]
        assert ("typical_p" in able["sampling"]) == (engine == "exllamav2")
        assert props["memory"] == {"CUDA0": 5 * 2**30}


class TestLogprobs:
    def test_chat(self, host: RunningHost) -> None:
        stream = host.chat(logprobs=True, top_logprobs=2, max_tokens=3)
        rows = [row for choice in stream.choices for row in (choice["logprobs"] or {}).get("content", ())]
        assert [row["token"] for row in rows] == ["O", "n", "c"]
        first = rows[0]
        assert first["logprob"] == pytest.approx(-0.57, abs=0.01)
        assert [top["token"] for top in first["top_logprobs"]] == ["O", "P"]
        assert first["bytes"] == [79]

    def test_none_of_the_likeliest(self, host: RunningHost) -> None:
        stream = host.chat(logprobs=True, max_tokens=1)
        (row,) = [row for choice in stream.choices for row in (choice["logprobs"] or {}).get("content", ())]
        assert row["top_logprobs"] == []

    def test_completions_have_their_older_fields_too(self, host: RunningHost) -> None:
        stream = host.complete(logprobs=1, max_tokens=2)
        told = stream.choices[0]["logprobs"]
        assert told["tokens"] == ["O"]
        assert told["top_logprobs"] == [{"O": told["token_logprobs"][0]}]

    def test_half_characters_have_their_own_bytes(self, host: RunningHost) -> None:
        stream = host.complete(logprobs=0)
        rows = [row for choice in stream.choices for row in (choice["logprobs"] or {}).get("content", ())]
        assert b"".join(bytes(row["bytes"]) for row in rows).decode() == ANSWER

    def test_the_token_that_ends_it_has_none(self, host: RunningHost) -> None:
        """What is held back for a stop string has its rows, when it turns out to be text."""
        stream = host.complete(logprobs=0, stop=["laughed. And"])
        rows = [row for choice in stream.choices for row in (choice["logprobs"] or {}).get("content", ())]
        assert "".join(row["token"] for row in rows if "\ufffd" not in row["token"]) == ANSWER.replace("🙂", "")


class TestSampling:
    def test_nothing_is_left_to_the_library_s_defaults(self, host: RunningHost) -> None:
        host.complete(max_tokens=1, temperature=1)
        settings = host.jobs[-1]["settings"]
        neutral: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
        if "rep_p" in settings:
            neutral |= {"rep_p": 1.0, "freq_p": 0.0, "pres_p": 0.0, "logit_bias": None}
        else:
            neutral |= {
                "token_repetition_penalty": 1.0, "token_frequency_penalty": 0.0, "token_presence_penalty": 0.0,
                "typical": 0.0, "tfs": 0.0, "top_a": 0.0, "mirostat": False,
            }  # fmt: skip
        assert {name: settings[name] for name in neutral} == neutral

    def test_everything_that_is_given(self, host: RunningHost) -> None:
        host.complete(
            max_tokens=1, temperature=0.7, top_p=0.9, top_k=30, min_p=0.05, repeat_penalty=1.1, repeat_last_n=64,
            presence_penalty=0.2, frequency_penalty=0.3, logit_bias=[[65, 5], [66, -100]], seed=7,
        )  # fmt: skip
        job = host.jobs[-1]
        settings = job["settings"]
        assert job["seed"] == 7
        shared = {"temperature": 0.7, "top_p": 0.9, "top_k": 30, "min_p": 0.05}
        assert {name: settings[name] for name in shared} == shared
        if "rep_p" in settings:
            assert (settings["rep_p"], settings["pres_p"], settings["freq_p"]) == (1.1, 0.2, 0.3)
            assert settings["rep_sustain_range"] == 64
            assert settings["logit_bias"] == {"65": 5.0, "66": -100.0}
        else:
            assert settings["token_repetition_penalty"] == 1.1
            assert settings["token_repetition_range"] == 64
            assert (settings["token_presence_penalty"], settings["token_frequency_penalty"]) == (0.2, 0.3)
            assert settings["token_bias"] == {"65": 5.0, "66": -100.0}

    @pytest.mark.parametrize("greedy", [{"temperature": 0}, {"top_k": 1}, {"top_p": 0}], ids=str)
    def test_greedy(self, host: RunningHost, greedy: dict[str, Any]) -> None:
        assert host.complete(max_tokens=4, **{"temperature": 1.5, **greedy}).text == "Once"

    def test_penalties_over_an_empty_range_are_none(self, host: RunningHost) -> None:
        host.complete(max_tokens=1, repeat_penalty=1.3, presence_penalty=1, repeat_last_n=0)
        settings = host.jobs[-1]["settings"]
        assert settings.get("rep_p", settings.get("token_repetition_penalty")) == 1.0
        assert settings.get("pres_p", settings.get("token_presence_penalty")) == 0.0

    def test_a_seed_makes_it_repeatable(self, host: RunningHost) -> None:
        texts = [host.complete(max_tokens=12, temperature=1, seed=seed).text for seed in (5, 5, 6)]
        assert texts[0] == texts[1] != texts[2]

    def test_typical_p_is_exllamav2_s(self, host: RunningHost) -> None:
        answer = host.post("/v1/completions", prompt="hi", typical_p=0.5, max_tokens=1)
        assert (answer.status_code == 200) == (
            "typical_p" in host.client.get("/props").json()["capabilities"]["sampling"]
        )


class TestFormats:
    def test_a_schema_is_kept(self, host: RunningHost) -> None:
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
        for wanted in (schema, {"type": "json_object"}):
            stream = host.chat(response_format=wanted)
            assert (stream.text, stream.reason) == ('{"ok":1}', "stop")

    def test_a_bad_schema_is_refused(self, host: RunningHost) -> None:
        wanted = {"type": "json_schema", "json_schema": {"schema": {"type": "objekt"}}}
        answer = host.post("/v1/completions", prompt="hi", response_format=wanted)
        assert answer.status_code == 400
        assert "grammar error" in error_of(answer)["message"]

    def test_text_is_no_format(self, host: RunningHost) -> None:
        assert host.chat(response_format={"type": "text"}, max_tokens=4).text == "Once"

    def test_a_grammar_is_exllamav3_s(self, host: RunningHost) -> None:
        answer = host.post("/v1/completions", prompt="hi", grammar='root ::= "a"')
        assert answer.status_code == (200 if host.client.get("/props").json()["capabilities"]["grammar"] else 400)


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"prompt": ""}, "prompt"),
            ({"prompt": [1, "a"]}, "prompt"),
            ({"prompt": [999]}, "prompt"),
            ({"prompt": ["a", "b"]}, "prompt"),
            ({"prompt": None}, "prompt"),
            ({"prompt": "a", "temperature": "hot"}, "temperature"),
            ({"prompt": "a", "temperature": -1}, "temperature"),
            ({"prompt": "a", "top_p": 2}, "top_p"),
            ({"prompt": "a", "top_k": 1.5}, "top_k"),
            ({"prompt": "a", "max_tokens": True}, "max_tokens"),
            ({"prompt": "a", "stop": [1]}, "stop"),
            ({"prompt": "a", "stop": ["x"] * 65}, "stop"),
            ({"prompt": "a", "logit_bias": {"a": 1}}, "logit_bias"),
            ({"prompt": "a", "logprobs": 99}, "logprobs"),
            ({"prompt": "a", "n": 2}, "n"),
            ({"prompt": "a", "suffix": "b"}, "suffix"),
            ({"prompt": "a", "response_format": {"type": "xml"}}, "response_format"),
        ],
        ids=str,
    )  # fmt: skip
    def test_bad_values_are_named(self, host: RunningHost, body: dict[str, Any], param: str) -> None:
        answer = host.post("/v1/completions", **body)
        assert answer.status_code == 400
        assert error_of(answer)["param"] == param

    def test_tools_are_refused(self, host: RunningHost) -> None:
        tool = {"type": "function", "function": {"name": "f"}}
        answer = host.post("/v1/chat/completions", messages=[{"role": "user", "content": "hi"}], tools=[tool])
        assert (answer.status_code, error_of(answer)["param"]) == (400, "tools")

    def test_images_are_refused(self, host: RunningHost) -> None:
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
        answer = host.post("/v1/chat/completions", messages=[{"role": "user", "content": [picture]}])
        assert answer.status_code == 400
        assert "text only" in error_of(answer)["message"]

    @pytest.mark.parametrize(
        "messages", [None, [], ["x"], [{"content": "x"}], [{"role": "user", "content": 3}]], ids=str
    )
    def test_messages_that_are_none(self, host: RunningHost, messages: Any) -> None:
        assert host.post("/v1/chat/completions", messages=messages).status_code == 400

    def test_a_prompt_longer_than_the_context_is_refused_before_the_library_sees_it(self, host: RunningHost) -> None:
        before = len(host.jobs)
        answer = host.post("/v1/completions", prompt="a" * 512, stream=True)
        assert answer.status_code == 400
        told = error_of(answer)
        assert (told["type"], told["n_prompt_tokens"], told["n_ctx"]) == ("exceed_context_size_error", 512, 512)
        assert len(host.jobs) == before

    @pytest.mark.parametrize("limit", [{"max_tokens": 4000}, {"max_tokens": -1}, {}], ids=str)
    def test_no_answer_outgrows_the_context(self, host: RunningHost, limit: dict[str, Any]) -> None:
        stream = host.complete("a" * 500, **limit)
        assert (len(stream.text), stream.reason) == (12, "length")

    @pytest.mark.parametrize("path", ["/v1/embeddings", "/nope", "/v1/chat"])
    def test_what_there_is_not(self, host: RunningHost, path: str) -> None:
        answer = host.post(path, input="x")
        assert (answer.status_code, error_of(answer)["code"]) == (404, 404)

    def test_a_key_is_needed_for_all_but_health(self, host: RunningHost) -> None:
        for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong"}):
            assert host.client.get("/v1/models", headers=headers).status_code == 401
            assert host.client.post("/v1/completions", json={"prompt": "a"}, headers=headers).status_code == 401
            assert host.client.get("/health", headers=headers).status_code == 200

    @pytest.mark.parametrize(
        "body", [b"{", b"[1]", b"\xff", b"", b"[" * 100_000], ids=["cut", "list", "bytes", "none", "deep"]
    )
    def test_bodies_that_are_no_object(self, host: RunningHost, body: bytes) -> None:
        answer = host.client.post("/v1/completions", content=body)
        assert answer.status_code == 400

    @pytest.mark.parametrize("tokens", [[-1], ["a"], [2**40], 7, None], ids=str)
    def test_tokens_that_are_none(self, host: RunningHost, tokens: Any) -> None:
        assert host.post("/detokenize", tokens=tokens).status_code == 400


class TestConcurrency:
    def test_as_many_as_there_are_slots_at_once_and_the_rest_wait(self, tmp_path: Path) -> None:
        with running_host(tmp_path, token_s=0.005, endless=True) as host:
            lengths: list[int] = []
            threads = [
                threading.Thread(target=lambda: lengths.append(len(host.complete(max_tokens=30).text)))
                for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            busiest = 0
            while any(thread.is_alive() for thread in threads):
                busiest = max(busiest, host.health()[1]["busy"])
            assert lengths == [30] * 4
            assert busiest >= 3, "waiting ones count too: they are in the engine's own queue"

    def test_two_answers_are_made_side_by_side(self, tmp_path: Path) -> None:
        with running_host(tmp_path, token_s=0.01, endless=True) as host:
            body = {"prompt": "a", "max_tokens": 400, "stream": True, "temperature": 0}
            with (
                host.client.stream("POST", "/v1/completions", json=body) as first,
                host.client.stream("POST", "/v1/completions", json=body) as second,
            ):
                lines = first.iter_lines(), second.iter_lines()
                assert all(next(line) for line in lines)
                assert host.health()[1]["busy"] == 2

    def test_without_paged_attention_one_at_a_time_and_it_says_so(self, tmp_path: Path) -> None:
        with running_host(tmp_path, engine="exllamav2", unpaged=True, slots=4) as host:
            props = host.client.get("/props").json()
            assert (props["total_slots"], props["is_paged"]) == (1, False)
            ((subject, text),) = props["warnings"]
            assert subject == "unpaged"
            assert "flash-attn" in text
            assert host.events("generator")[0]["name"] == "unpaged"
            assert host.complete(max_tokens=4).text == "Once"

    def test_a_model_that_can_not_use_flash_attention(self, tmp_path: Path) -> None:
        with running_host(tmp_path, engine="exllamav2", no_flash_attn=True) as host:
            assert host.client.get("/props").json()["total_slots"] == 1

    def test_health_answers_while_the_generator_is_in_a_long_step(self, tmp_path: Path) -> None:
        with running_host(tmp_path, stalls_at=3) as host:
            with pytest.raises(httpx.ReadTimeout):
                host.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 20}, timeout=0.5)
            began = time.perf_counter()
            status, told = host.health()
            assert time.perf_counter() - began < 0.5
            assert (status, told["busy"]) == (200, 1)
            assert told["since_step_s"] > 0.3


class TestCancelling:
    @pytest.mark.parametrize("is_streamed", [True, False], ids=["stream", "whole"])
    @pytest.mark.parametrize("engine", ENGINES)
    def test_a_client_that_leaves_stops_the_work(self, tmp_path: Path, engine: str, is_streamed: bool) -> None:
        with running_host(tmp_path, engine=engine, token_s=0.01, endless=True) as host:
            body = {"prompt": "a", "max_tokens": 400, "temperature": 0, "stream": is_streamed}
            if is_streamed:
                with host.client.stream("POST", "/v1/completions", json=body) as answer:
                    assert next(answer.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    host.client.post("/v1/completions", json=body, timeout=0.3)
            began = time.monotonic()
            while not host.events("cancel"):
                assert time.monotonic() - began < 5
                time.sleep(0.005)
            assert time.monotonic() - began < 1
            while host.health()[1]["busy"]:
                assert time.monotonic() - began < 5
            assert host.events("end") == []
            assert len(host.complete(max_tokens=5).text) == 5

    def test_leaving_at_the_very_end_disturbs_nobody(self, tmp_path: Path) -> None:
        """The race of a cancellation with the end of the answer: many short answers, left as soon as they begin."""
        with running_host(tmp_path, slots=4) as host:
            for tokens in (1, 1, 2, 2, 3, 3):
                body = {"prompt": "a", "max_tokens": tokens, "temperature": 0, "stream": True}
                with host.client.stream("POST", "/v1/completions", json=body):
                    pass
            assert host.complete(max_tokens=4).text == "Once"
            assert "failed" not in host.output


class TestModels:
    def test_a_model_without_a_template_completes_and_does_not_chat(self, tmp_path: Path) -> None:
        model = write_model(tmp_path / "m", template=None).parent
        with running_host(tmp_path, model=model) as host:
            assert host.client.get("/props").json()["capabilities"]["chat"] is False
            answer = host.post("/v1/chat/completions", messages=[{"role": "user", "content": "hi"}])
            assert (answer.status_code, "no chat template" in error_of(answer)["message"]) == (400, True)
            assert host.complete(max_tokens=4).text == "Once"

    def test_a_template_in_a_file_of_its_own_comes_first(self, tmp_path: Path) -> None:
        model = write_model(tmp_path / "m").parent
        (model / "chat_template.jinja").write_text("file:{{ messages[0].content }}")
        with running_host(tmp_path, model=model) as host:
            messages = [{"role": "user", "content": "x"}]
            assert host.post("/apply-template", messages=messages).json() == {"prompt": "file:x"}

    def test_of_several_templates_the_default(self, tmp_path: Path) -> None:
        named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
        with running_host(tmp_path, model=write_model(tmp_path / "m", template=named).parent) as host:
            assert host.post("/apply-template", messages=[{"role": "user", "content": "x"}]).json() == {"prompt": "yes"}

    def test_a_template_from_outside_comes_before_all(self, tmp_path: Path) -> None:
        template = tmp_path / "t.jinja"
        template.write_text("outside")
        with running_host(tmp_path, "--template", str(template)) as host:
            messages = [{"role": "user", "content": "x"}]
            assert host.post("/apply-template", messages=messages).json() == {"prompt": "outside"}

    @pytest.mark.parametrize(
        ("says", "ids"), [({"add_bos_token": True}, 3), ({"add_bos_token": False}, 2), ({}, 2)], ids=str
    )
    def test_raw_prompts_begin_with_bos_where_the_tokenizer_says_so(
        self, tmp_path: Path, says: dict[str, Any], ids: int
    ) -> None:
        with running_host(tmp_path, model=write_model(tmp_path / "m", tokenizer=says).parent) as host:
            host.complete("hi", max_tokens=1)
            assert host.jobs[-1]["ids"] == ids
            host.chat("hi", max_tokens=1)
            assert host.jobs[-1]["ids"] == len(TEMPLATE_TOKENS)

    def test_bos_by_the_tokenizer_s_own_processor(self, tmp_path: Path) -> None:
        model = write_model(tmp_path / "m").parent
        (model / "tokenizer.json").write_text(
            '{"post_processor": {"type": "Sequence", "processors": [{"type": "TemplateProcessing", "single": '
            '[{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A"}}]}]}}'
        )
        with running_host(tmp_path, model=model) as host:
            host.complete("hi", max_tokens=1)
            assert host.jobs[-1]["ids"] == 3

    @pytest.mark.parametrize(
        ("engine", "kind", "noted"),
        [
            ("exllamav2", "fp16", {"kind": "ExLlamaV2Cache"}),
            ("exllamav2", "q8", {"kind": "ExLlamaV2Cache_Q8"}),
            ("exllamav2", "q6", {"kind": "ExLlamaV2Cache_Q6"}),
            ("exllamav2", "q4", {"kind": "ExLlamaV2Cache_Q4"}),
            ("exllamav3", "fp16", {"kind": "CacheLayer_fp16", "bits": None}),
            ("exllamav3", "q6", {"kind": "CacheLayer_quant", "bits": 6}),
        ],
    )
    def test_cache_types(self, tmp_path: Path, engine: str, kind: str, noted: dict[str, Any]) -> None:
        with running_host(tmp_path, "--cache-type", kind, engine=engine) as host:
            (cache,) = host.events("cache")
            assert cache == {"event": "cache", "tokens": 2 * 768, **noted}

    @pytest.mark.parametrize("engine", ENGINES)
    def test_a_split_over_gpus(self, tmp_path: Path, engine: str) -> None:
        with running_host(tmp_path, "--gpu-split", "20,24.5", engine=engine, gpus=2) as host:
            assert host.events("load")[0]["gpu_split"] == [20.0, 24.5]

    @pytest.mark.parametrize("engine", ENGINES)
    def test_a_draft_model_keeps_the_limit_exact(self, tmp_path: Path, engine: str) -> None:
        quantization = {"exllamav2": "exl2", "exllamav3": "exl3"}[engine]
        draft = write_model(tmp_path / "draft", quantization=quantization).parent
        words = ("--draft", str(draft), "--draft-tokens", "4")
        with running_host(tmp_path, *words, engine=engine) as host:
            assert host.events("load")[0]["model"] == str(draft)
            assert len({cache["tokens"] for cache in host.events("cache")}) == 1
            stream = host.complete(max_tokens=10)
            assert (len(stream.text), stream.reason) == (10, "length")
            assert len(host.complete("a" * 505).text) == 7

    def test_no_library_for_schemas(self, tmp_path: Path) -> None:
        with running_host(tmp_path, llguidance=False) as host:
            answer = host.post("/v1/completions", prompt="a", response_format={"type": "json_object"})
            assert answer.status_code == 400
            assert "llguidance" in error_of(answer)["message"]


TEMPLATE_TOKENS = [*b"user\nhi\nassistant\n", 258, 259, 258]
assert "im_start" in TEMPLATE


class TestHostileTemplates:
    """In a process of their own, which is bounded: the engine's other requests don't even notice."""

    @pytest.mark.parametrize(
        "template",
        [
            "{{ ''.__class__.__mro__ }}",
            "{{ ''['__class__']['__base__'].__subclasses__() }}",
            "{{ ''|attr('__class__')|attr('__mro__') }}",
            "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
            "{{ messages.__init__.__globals__ }}",
            "{% for i in range(10**9) %}x{% endfor %}",
            "{{ 'a'*10**9 }}",
            "{{ '%1000000000d' % 1 }}",
            "{{ 'a'.ljust(10**10) }}",
            "{{ 10**10**8 }}",
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
            "{{ messages.append(1) }}",
            "{{ raise_exception('not for you') }}",
            "{% if %}",
            "{{ 'a' }}" * 10_000,
        ],
        ids=lambda template: template[:40],
    )
    def test_none_gets_out_or_takes_the_engine_with_it(self, tmp_path: Path, template: str) -> None:
        model = write_model(tmp_path / "m", template=template).parent
        with running_host(tmp_path, model=model) as host:
            told = host.client.get("/props").json()
            answer = host.post("/apply-template", messages=[{"role": "user", "content": "x"}])
            if answer.status_code == 200:  # an undefined value is nothing, and harmless
                assert "class" not in answer.text
                assert "globals" not in answer.text
            else:
                assert answer.status_code == 400
                assert told["capabilities"]["chat"] is False
                assert told["warnings"][0][0] == "template"
            assert host.complete(max_tokens=4).text == "Once"

    def test_one_that_turns_hostile_later_costs_one_request(self, tmp_path: Path) -> None:
        """It renders the trial; a client's text makes it run for ever. The next request has a new renderer."""
        template = (
            "{% if messages[0].content == 'loop' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
        )
        model = write_model(tmp_path / "m", template=template + "{% endfor %}{% endif %}ok").parent
        with running_host(tmp_path, model=model) as host:
            answer = host.post("/apply-template", messages=[{"role": "user", "content": "loop"}])
            assert answer.status_code == 400
            assert "5 s" in error_of(answer)["message"]
            assert host.post("/apply-template", messages=[{"role": "user", "content": "x"}]).json() == {"prompt": "ok"}

    def test_what_templates_may_do(self, tmp_path: Path) -> None:
        template = (
            "{{ bos_token }}{%- for m in messages -%}{%- if m.role == 'tool' -%}{%- continue -%}{%- endif -%}"
            "{% generation %}{{ m.content | tojson }}{% endgeneration %}"
            "{% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}{% endfor %}"
            "{%- endfor %}{{ strftime_now('%Y')[:2] }}{{ enable_thinking }}{% if add_generation_prompt %}>{% endif %}"
        )
        with running_host(tmp_path, model=write_model(tmp_path / "m", template=template).parent) as host:
            call = {"type": "function", "function": {"name": "f", "arguments": '{"city": "Köln"}'}}
            told = host.post(
                "/apply-template",
                messages=[
                    {"role": "user", "content": "<é>"},
                    {"role": "tool", "content": "skipped"},
                    {"role": "assistant", "content": None, "tool_calls": [call]},
                ],
                chat_template_kwargs={"enable_thinking": False},
            ).json()
            assert told == {"prompt": '<s>"<é>"""Köln20False>'}


class TestPhases:
    def test_the_socket_is_there_from_the_start(self, tmp_path: Path) -> None:
        with start_host(tmp_path, build_s=0.6, load_s=0.6) as host:
            assert host.wait_phase("building")["status"] == "unavailable"
            answer = host.post("/v1/completions", prompt="a")
            assert (answer.status_code, "building" in error_of(answer)["message"]) == (503, True)
            told = host.wait_phase("loading")
            while told["phase"] == "loading" and not told["done"]:
                _, told = host.health()
            assert told["total"] == 4 or told["phase"] == "ready"
            host.wait_phase("ready")

    def test_a_stale_lock_of_a_killed_build_is_cleared(self, tmp_path: Path) -> None:
        """torch waits for ever for the lock file of a build that was killed."""
        lock = tmp_path / "build" / "exllamav3_ext" / "lock"
        lock.parent.mkdir(parents=True)
        lock.touch()
        with running_host(tmp_path, environ={"TORCH_EXTENSIONS_DIR": str(tmp_path / "build")}):
            assert not lock.exists()
