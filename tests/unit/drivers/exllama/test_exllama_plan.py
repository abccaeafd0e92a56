"""What the ExLlama drivers support, plan and say of themselves: from data alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.exllama_driver import GIB, driver_for, make_gpu, make_hardware, make_model, make_probe
from support.exllama_python import install

from oprel.config import Settings
from oprel.drivers import InsufficientMemoryError, UnsupportedError
from oprel.drivers.exllama.options import ExllamaOptions
from oprel.drivers.registry import Registry
from oprel.errors import ConfigError, DriverUnavailableError
from oprel.schema import LoadOptions, Model, ModelFile, Plan
from oprel.server.compose import make_registry

OPTIONS = LoadOptions()


def plan_of(
    model: Model | None = None,
    options: LoadOptions = OPTIONS,
    *,
    driver: str = "exllamav3",
    table: dict[str, Any] | None = None,
    **machine: Any,
) -> Plan:
    probe = machine.pop("probe", None) or make_probe(driver)
    made = driver_for(Path("/run/x"), None, name=driver, table=table or {})
    plan: Plan = made.plan(model or make_model(), options, make_hardware(probe, **machine))
    return plan


class TestSupport:
    @pytest.mark.parametrize(
        ("fields", "v2", "v3"),
        [
            ({"format": "exl3"}, False, True),
            ({"format": "exl2"}, True, False),
            ({"format": "gptq"}, True, False),
            ({"format": "safetensors", "quantization": "GPTQ"}, True, False),
            ({"format": "safetensors", "quantization": "BF16"}, True, True),
            ({"format": "safetensors", "quantization": ""}, True, True),
            ({"format": "safetensors", "quantization": "AWQ"}, False, False),
            ({"format": "safetensors", "quantization": "FP8"}, False, False),
            ({"format": "gguf", "quantization": "Q4_0"}, False, False),
            ({"format": "exl3", "damage": "cut"}, False, False),
            ({"format": "exl3", "capabilities": frozenset({"embedding"})}, False, False),
            ({"format": "exl3", "files": ()}, False, False),
        ],
        ids=str,
    )
    def test_by_format(self, tmp_path: Path, fields: dict[str, Any], v2: bool, v3: bool) -> None:
        model = make_model(**fields)
        for name, expected in (("exllamav2", v2), ("exllamav3", v3)):
            support = driver_for(tmp_path, None, name=name).supports(model)
            assert (support.supported, bool(support.reason)) == (expected, True)

    def test_auto_takes_the_newer_one_first(self, tmp_path: Path) -> None:
        """For unquantized weights, which both run."""
        python = install(tmp_path)
        registry = make_registry(Settings(exllama_python=python, state_dir=tmp_path / "state"))
        assert isinstance(registry, Registry)
        hardware = make_hardware(*registry.probe())
        for fields, expected in (
            ({"format": "exl2"}, "exllamav2"),
            ({"format": "exl3"}, "exllamav3"),
        ):
            driver, reason = registry.choose(make_model(**fields), hardware)
            assert (driver.name, expected in reason) == (expected, True)
        order = [name for name in registry._auto_names() if name.startswith("exllama")]
        assert order == ["exllamav3", "exllamav2"]

    def test_the_right_driver_that_can_not_be_used_says_what_would_fix_it(self, tmp_path: Path) -> None:
        registry = make_registry(Settings(state_dir=tmp_path / "state"))
        with pytest.raises(DriverUnavailableError, match="OPREL_EXLLAMA_PYTHON"):
            registry.choose(make_model(), make_hardware(*registry.probe()))


class TestAvailability:
    def test_usable(self, tmp_path: Path) -> None:
        available = driver_for(tmp_path, None).availability(make_hardware(make_probe()))
        assert available.usable
        assert available.reason == "exllamav3 9.9 (/opt/exl/bin/python; NVIDIA Imaginary 4090)"

    @pytest.mark.parametrize(
        ("hardware", "said"),
        [
            (make_hardware(), "hasn't been looked for"),
            (make_hardware(make_probe(problem="it is broken")), "it is broken"),
            (make_hardware(make_probe(), gpus=()), "no NVIDIA GPU"),
            (make_hardware(make_probe(), gpus=(make_gpu(vendor="amd"),)), "no NVIDIA GPU"),
        ],
        ids=["unknown", "problem", "none", "amd"],
    )
    def test_unusable(self, tmp_path: Path, hardware: Any, said: str) -> None:
        driver = driver_for(tmp_path, None)
        available = driver.availability(hardware)
        assert (available.usable, said in available.reason) == (False, True)
        with pytest.raises(DriverUnavailableError, match=said):
            driver.plan(make_model(), OPTIONS, hardware)


class TestPlan:
    def test_all_of_it(self) -> None:
        plan = plan_of()
        assert (plan.driver, plan.engine, plan.device, plan.slots) == ("exllamav3", "exllamav3 9.9", "gpu", 4)
        assert plan.context_tokens == 32_768
        assert (plan.gpu_layers, plan.layers, plan.chat, plan.embedding) == (32, 32, True, False)
        words = plan.argv
        assert words[:4] == make_probe().command
        assert words[words.index("--model") + 1] == "/models/llama"
        assert words[words.index("--socket") + 1] == "{socket}"
        assert dict(plan.environment)["TORCH_EXTENSIONS_DIR"] == "{cache}/exllamav3-9.9-torch2.11.0-py3.12"
        assert {"engine", "device", "context", "slots", "cache"} <= set(dict(plan.reasons))

    def test_slots_fall_before_the_context_does(self) -> None:
        sizes = [
            (plan.slots, plan.context_tokens)
            for free in (23, 12, 9, 8)
            for plan in [plan_of(gpus=(make_gpu(free_gib=free),))]
        ]
        assert [slots for slots, _ in sizes] == sorted((slots for slots, _ in sizes), reverse=True)
        assert all(context >= 8192 for slots, context in sizes if slots > 1)

    def test_the_plan_fits_what_is_free(self) -> None:
        for free in (8.0, 11.0, 14.0, 23.0):
            plan = plan_of(gpus=(make_gpu(free_gib=free),))
            assert plan.bytes_on_gpu <= (free - 1) * GIB

    def test_several_gpus_are_filled_in_turn(self) -> None:
        model = make_model(weights_bytes=30 * GIB)
        plan = plan_of(model, gpus=(make_gpu(0), make_gpu(1)))
        on = dict(plan.bytes_by_device)
        assert on["CUDA0"] == 22 * GIB
        assert on["CUDA1"] > 8 * GIB

    def test_a_configured_split(self) -> None:
        plan = plan_of(
            make_model(weights_bytes=15 * GIB), table={"gpu_split": [10, 12]}, gpus=(make_gpu(0), make_gpu(1))
        )
        assert dict(plan.bytes_by_device)["CUDA0"] == 10 * 10**9
        assert plan.argv[plan.argv.index("--gpu-split") + 1] == "10,12"

    def test_one_gpu_of_several(self) -> None:
        plan = plan_of(options=LoadOptions(main_gpu=1), gpus=(make_gpu(0), make_gpu(1)))
        assert dict(plan.environment)["CUDA_VISIBLE_DEVICES"] == "1"
        assert "CUDA0" not in dict(plan.bytes_by_device)

    def test_what_does_not_fit_is_an_error_with_numbers(self) -> None:
        with pytest.raises(InsufficientMemoryError) as caught:
            plan_of(make_model(weights_bytes=60 * GIB))
        assert (caught.value.needed_bytes or 0) > 60 * GIB
        assert caught.value.available_bytes == 22 * GIB

    def test_what_to_try_when_memory_runs_out(self) -> None:
        plan = plan_of()
        (fallback,) = plan.fallbacks
        assert fallback.context_tokens == plan.context_tokens // 2
        assert plan_of(options=LoadOptions(context_tokens=4096)).fallbacks == ()

    def test_the_trained_context_is_a_limit(self) -> None:
        plan = plan_of(make_model(context_tokens=2048), LoadOptions(context_tokens=9999))
        assert plan.context_tokens == 2048
        assert "9999" in dict(plan.reasons)["context_reduced"]

    @pytest.mark.parametrize(
        ("kind", "word", "share"),
        [("f16", "fp16", 1.0), ("q8_0", "q8", 0.53), ("q6_0", "q6", 0.41), ("q4_0", "q4", 0.28)],
    )
    def test_cache_types(self, kind: str, word: str, share: float) -> None:
        def cache(kind: str) -> tuple[float, str]:
            plan = plan_of(options=LoadOptions(context_tokens=8192, slots=4, kv_cache_type=kind))
            fixed = int(4.9 * GIB) + 512 * 2**20 + 32 * 4096 * 2048
            return plan.bytes_on_gpu - fixed, plan.argv[plan.argv.index("--cache-type") + 1]

        size, written = cache(kind)
        assert written == word
        assert size / cache("f16")[0] == pytest.approx(share, abs=0.01)

    def test_the_table_s_cache_type_is_for_those_who_name_none(self) -> None:
        assert "q4" in plan_of(table={"cache_type": "q4_0"}).argv
        assert "q8" in plan_of(options=LoadOptions(kv_cache_type="q8_0"), table={"cache_type": "q4_0"}).argv

    def test_without_flash_attention_exllamav2_takes_one_at_a_time(self) -> None:
        bare = make_probe("exllamav2", flags=frozenset({"torch==2.9.0", "exllamav2==0.3.2"}))
        plan = plan_of(make_model(format="exl2"), LoadOptions(slots=4), driver="exllamav2", probe=bare)
        assert plan.slots == 1
        assert "1 instead of the 4 asked for: without flash-attn" in dict(plan.reasons)["slots"]
        assert plan_of(make_model(format="exl2"), driver="exllamav2").slots == 4

    def test_a_draft_model_of_the_catalog_s(self) -> None:
        draft = ModelFile("draft", "/models/tiny/model.safetensors", "ef" * 32, GIB)
        model = make_model()
        plan = plan_of(msgspec.structs.replace(model, files=(*model.files, draft)))
        assert plan.argv[plan.argv.index("--draft") + 1] == "/models/tiny"
        assert plan.bytes_on_gpu > plan_of().bytes_on_gpu - 10 * GIB
        assert "/models/tiny" in dict(plan.reasons)["draft"]

    @pytest.mark.parametrize(
        "options",
        [
            {"context_tokens": 0},
            {"slots": 0},
            {"slots": 999},
            {"gpu_layers": 0},
            {"gpu_layers": 10},
            {"main_gpu": 3},
            {"kv_cache_type": "q5_1"},
            {"chat_template": "chatml"},
            {"chat_template": "{{ x }}" * 20_000},
        ],
        ids=lambda options: str(options)[:30],
    )
    def test_options_that_can_not_be_honoured(self, options: dict[str, Any]) -> None:
        with pytest.raises(UnsupportedError) as caught:
            plan_of(options=LoadOptions(**options))
        assert caught.value.capability in options
        assert caught.value.driver == "exllamav3"

    def test_options_without_a_meaning_here_are_told(self) -> None:
        plan = plan_of(options=LoadOptions(batch_tokens=512, mmap=True))
        assert "batch_tokens, mmap" in dict(plan.reasons)["ignored"]

    def test_equal_questions_have_equal_answers(self) -> None:
        assert plan_of() == plan_of()
        assert msgspec.json.encode(plan_of())


class TestOptions:
    def test_all(self) -> None:
        table = {
            "gpu_split": [20, 24.5],
            "cache_type": "q6_0",
            "draft_model": "/m/tiny",
            "draft_tokens": 2,
            "build_dir": "/var/kernels",
            "build_timeout_s": 60,
        }
        found = ExllamaOptions.parse(table)
        assert (found.gpu_split, found.build_timeout_s) == ((20.0, 24.5), 60.0)

    @pytest.mark.parametrize(
        "table",
        [
            {"gpu_splits": [1]},
            {"gpu_split": ["a"]},
            {"gpu_split": [-1]},
            {"gpu_split": [0, 0]},
            {"cache_type": "q5"},
            {"draft_model": "tiny"},
            {"draft_tokens": 0},
            {"build_dir": "here"},
            {"build_timeout_s": 0},
        ],
        ids=str,
    )
    def test_mistakes_are_named(self, table: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=r"\[exllama\]"):
            ExllamaOptions.parse(table)

    def test_they_are_checked_when_the_server_is_composed(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="gpu_splits"):
            make_registry(Settings(exllama={"gpu_splits": 1}, state_dir=tmp_path))


class TestProbe:
    def test_what_is_there(self, tmp_path: Path) -> None:
        (probe,) = driver_for(tmp_path, install(tmp_path / "env")).probe()
        assert (probe.problem, probe.engine, probe.version) == (None, "exllamav3", "1.6.5")
        assert {"torch==2.11.0", "exllamav2==0.3.2"} <= probe.flags

    def test_nothing_is_imported(self, tmp_path: Path) -> None:
        """An import may compile for minutes."""
        python = install(tmp_path / "env", torch_error="imported", import_error="imported")
        (probe,) = driver_for(tmp_path, python, name="exllamav2").probe()
        assert probe.problem is None

    def test_the_folder_of_a_virtual_environment(self, tmp_path: Path) -> None:
        install(tmp_path / "env" / "bin")
        (probe,) = driver_for(tmp_path, tmp_path / "env").probe()
        assert probe.command[0] == str(tmp_path / "env/bin/python")

    @pytest.mark.parametrize(
        ("script", "said"),
        [
            ({"packages": ["torch", "exllamav2"]}, "has no exllamav3: run "),
            ({"packages": ["exllamav3"]}, "has no torch and no tokenizers: run "),
            ({"python_error": "bad magic number"}, "bad magic number"),
        ],
        ids=["package", "torch", "python"],
    )
    def test_what_is_missing_and_what_would_fix_it(self, tmp_path: Path, script: dict[str, Any], said: str) -> None:
        (probe,) = driver_for(tmp_path, install(tmp_path / "env", **script)).probe()
        assert said in (probe.problem or "")
        assert "pip install" in (probe.problem or "")

    def test_no_interpreter(self, tmp_path: Path) -> None:
        (none,) = driver_for(tmp_path, None).probe()
        assert "no Python with exllamav3 is named" in (none.problem or "")
        (gone,) = driver_for(tmp_path, tmp_path / "nope").probe()
        assert "No such file" in (gone.problem or "")
        (tmp_path / "text").write_text("not a program")
        (text,) = driver_for(tmp_path, tmp_path / "text").probe()
        assert text.problem is not None
