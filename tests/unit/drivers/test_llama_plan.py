"""Plans: what is chosen, in which order things are given up, and that every choice says why."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.llama_models import GIB, MIB, make_hardware, make_model, make_probe

from oprel.drivers import DriverOptions
from oprel.drivers.llama_cpp import LlamaCppDriver
from oprel.drivers.llama_cpp.plan import make_plan
from oprel.drivers.llama_cpp.shape import Shape, Wish, best_shape
from oprel.errors import InsufficientMemoryError, ModelDamagedError, UnsupportedError
from oprel.schema import Device, EngineProbe, Gpu, Hardware, LoadOptions, Model, ModelFile, Plan

DRIVER = LlamaCppDriver(DriverOptions(run_dir="/run/oprel"))


def cuda(free_gib: float, *, index: int = 0) -> Device:
    return Device(f"CUDA{index}", "RTX", total_bytes=int((free_gib + 1) * GIB), free_bytes=int(free_gib * GIB))


def plan(
    model: Model | None = None,
    options: LoadOptions | None = None,
    *,
    hardware: Hardware | None = None,
    probe: EngineProbe | None = None,
) -> Plan:
    probe = probe or make_probe()
    hardware = msgspec.structs.replace(hardware or make_hardware(), engines=(probe,))
    return DRIVER.plan(model or make_model(), options or LoadOptions(), hardware)


def option(found: Plan, name: str) -> str | None:
    return found.argv[found.argv.index(name) + 1] if name in found.argv else None


def subjects(found: Plan) -> set[str]:
    return {subject for subject, _ in found.reasons}


class TestContextAndSlots:
    @pytest.mark.parametrize(
        ("ram_gib", "slots", "context"),
        [
            (32, 4, 32_768),
            (16, 4, 21_248),
            (10, 4, 8960),
            (8, 2, 10_240),
            (7, 1, 13_056),
            (6.4, 1, 8192),
            (5.8, 1, 3584),
        ],
    )
    def test_slots_are_given_up_before_a_good_context(self, ram_gib: float, slots: int, context: int) -> None:
        found = plan(hardware=make_hardware(ram_gib=ram_gib))
        assert (found.slots, found.context_tokens) == (slots, context)
        assert found.bytes_total <= (ram_gib - 0.25) * GIB
        assert dict(found.reasons)["context"].startswith(f"{context} tokens for each slot")

    def test_each_slot_has_its_context_for_itself(self) -> None:
        found = plan(make_model(context_tokens=8192))
        assert (found.slots, found.context_tokens) == (4, 8192)
        assert (option(found, "--parallel"), option(found, "--ctx-size")) == ("4", "32768")
        assert "--no-kv-unified" in found.argv

    def test_the_trained_context_is_a_limit_that_is_told(self) -> None:
        found = plan(make_model(context_tokens=4096), LoadOptions(context_tokens=100_000))
        assert found.context_tokens == 4096
        assert "100000" in dict(found.reasons)["context_reduced"]

    def test_what_is_asked_for_wins(self) -> None:
        found = plan(options=LoadOptions(context_tokens=65_536, slots=2))
        assert (found.slots, found.context_tokens) == (2, 65_536)
        assert "context_reduced" not in subjects(found)

    def test_slots_give_way_to_a_context_that_is_asked_for(self) -> None:
        found = plan(options=LoadOptions(context_tokens=131_072), hardware=make_hardware(ram_gib=24))
        assert (found.slots, found.context_tokens) == (1, 131_072)

    def test_a_smaller_cache_type_makes_room(self) -> None:
        small = make_hardware(ram_gib=10)
        assert (
            plan(options=LoadOptions(kv_cache_type="q4_0"), hardware=small).context_tokens
            > 2 * plan(hardware=small).context_tokens
        )

    def test_nothing_fits(self) -> None:
        with pytest.raises(InsufficientMemoryError) as caught:
            plan(hardware=make_hardware(ram_gib=4))
        assert caught.value.needed_bytes is not None
        assert caught.value.available_bytes is not None
        assert caught.value.needed_bytes > caught.value.available_bytes > 3 * GIB
        assert "needs at least 5." in caught.value.message
        assert "and 3.8 GiB can be used" in caught.value.message

    def test_a_context_asked_for_that_does_not_fit_is_refused_with_its_numbers(self) -> None:
        with pytest.raises(InsufficientMemoryError, match="131072 tokens of context asked for"):
            plan(options=LoadOptions(context_tokens=131_072), hardware=make_hardware(ram_gib=12))

    @given(
        most=st.integers(1, 200_000),
        room=st.integers(0, 2_000_000),
        slots=st.none() | st.integers(1, 16),
        is_fixed=st.booleans(),
    )
    def test_a_shape_fits_and_is_not_above_the_wish(
        self, most: int, room: int, slots: int | None, is_fixed: bool
    ) -> None:
        wish = Wish(most, slots, is_context_fixed=is_fixed)
        found = best_shape(wish, lambda shape: shape.tokens <= room)
        if found is None:
            assert wish.least.tokens > room
            return
        assert found.tokens <= room
        assert found.context_tokens <= most
        assert found.slots in wish.slot_counts
        assert not is_fixed or found.context_tokens == most
        if found.slots < wish.slot_counts[0]:
            more = Shape(wish.slot_counts[0], wish.good_tokens)
            assert more.tokens > room


class TestCommandLine:
    def test_on_the_cpu(self) -> None:
        found = plan()
        assert found.argv[0] == "/opt/llama-server"
        assert option(found, "--host") == "{socket}"
        assert (option(found, "--batch-size"), option(found, "--ubatch-size")) == ("512", "512")
        assert option(found, "--threads") == "8"
        assert option(found, "--fit") == "off"
        assert {"--no-ui", "--offline", "--no-warmup"} <= set(found.argv)
        assert 0 < int(option(found, "--cache-ram") or 0) <= 512
        assert not any("key" in word for word in found.argv)

    def test_only_options_that_the_engine_lists(self) -> None:
        bare = make_probe(
            flags=frozenset(
                {"--model", "--host", "--alias", "--ctx-size", "--parallel", "--threads", "--batch-size"}
                | {"--ubatch-size", "--no-webui", "--n-gpu-layers"}
            )
        )
        found = plan(options=LoadOptions(mmap=False, flash_attention=True), probe=bare)
        assert {word for word in found.argv if word.startswith("--")} <= bare.flags
        assert "--no-webui" in found.argv

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (LoadOptions(kv_cache_type="q8_0"), "--cache-type-k q8_0 --cache-type-v q8_0"),
            (LoadOptions(flash_attention=False), "--flash-attn off"),
            (LoadOptions(mmap=False), "--load-mode none"),
            (LoadOptions(batch_tokens=128), "--batch-size 128 --ubatch-size 128"),
            (LoadOptions(chat_template="chatml"), "--chat-template chatml"),
            (LoadOptions(chat_template="{% for m in messages %}{% endfor %}"), "--chat-template-file {template}"),
        ],
    )  # fmt: skip
    def test_options_become_arguments(self, options: LoadOptions, words: str) -> None:
        assert words in " ".join(plan(options=options).argv)

    @pytest.mark.parametrize(
        "options",
        [
            LoadOptions(kv_cache_type="f64"),
            LoadOptions(kv_cache_type="q8_0", flash_attention=False),
            LoadOptions(slots=0),
            LoadOptions(context_tokens=-1),
            LoadOptions(chat_template="--host"),
            LoadOptions(chat_template="../../etc/passwd"),
            LoadOptions(chat_template="{{ x }}" * 20_000),
        ],
    )
    def test_what_cannot_be_honoured_is_refused(self, options: LoadOptions) -> None:
        with pytest.raises(UnsupportedError):
            plan(options=options)

    @given(
        st.builds(
            LoadOptions,
            context_tokens=st.none() | st.integers(-5, 1 << 40),
            slots=st.none() | st.integers(-5, 300),
            gpu_layers=st.none() | st.integers(-5, 300),
            main_gpu=st.none() | st.integers(-5, 3),
            threads=st.none() | st.integers(-5, 300),
            batch_tokens=st.none() | st.integers(-5, 10_000),
            kv_cache_type=st.none() | st.text(max_size=5) | st.sampled_from(["f16", "q8_0"]),
            flash_attention=st.none() | st.booleans(),
            mmap=st.none() | st.booleans(),
            chat_template=st.none() | st.text(max_size=30),
        )
    )
    def test_no_option_becomes_a_flag_of_its_own(self, options: LoadOptions) -> None:
        probe = make_probe(cuda(24))
        try:
            found = plan(options=options, probe=probe)
        except (UnsupportedError, InsufficientMemoryError):
            return
        for each in (found, *found.fallbacks):
            assert {word for word in each.argv if word.startswith("--")} <= probe.flags

    def test_threads_never_exceed_the_machine(self) -> None:
        assert plan(options=LoadOptions(threads=500)).threads == 16
        assert plan(options=LoadOptions(threads=3)).threads == 3

    def test_adapter_and_projector_go_along(self) -> None:
        files = (
            ModelFile("weights", "/m/w", "aa", GIB),
            ModelFile("adapter", "/m/a", "bb", MIB),
            ModelFile("projector", "/m/p", "cc", MIB),
        )
        found = plan(make_model(files=files))
        assert (option(found, "--lora"), option(found, "--mmproj")) == ("/m/a", "/m/p")

    def test_an_adapter_whose_path_has_a_comma_is_refused(self) -> None:
        files = (ModelFile("weights", "/m/w", "aa", GIB), ModelFile("adapter", "/m,n/a", "bb", MIB))
        with pytest.raises(UnsupportedError, match="comma"):
            plan(make_model(files=files))

    def test_equal_inputs_make_equal_plans(self) -> None:
        assert plan() == plan()
        assert msgspec.json.decode(msgspec.json.encode(plan()), type=Plan) == plan()


class TestEmbedding:
    MODEL = make_model(
        name="minilm", weights_bytes=25 * MIB, context_tokens=512, embedding_length=384, layers=6,
        kv_bytes_per_token=9216, chat_template=None, capabilities=frozenset({"embedding"}), pooling="cls",
    )  # fmt: skip

    def test_an_input_is_one_batch(self) -> None:
        found = plan(self.MODEL)
        assert found.embedding
        assert (found.slots, found.context_tokens, found.chat) == (4, 512, False)
        assert (option(found, "--batch-size"), option(found, "--ubatch-size")) == ("512", "512")
        assert option(found, "--ctx-size") == "2048"
        assert "--embeddings" in found.argv
        assert option(found, "--pooling") == "cls"
        assert option(found, "--cache-ram") == "0"

    @pytest.mark.parametrize("pooling", [None, "none"])
    def test_a_model_without_pooling_gets_the_mean_and_is_told(self, pooling: None) -> None:
        found = plan(msgspec.structs.replace(self.MODEL, pooling=pooling))
        assert option(found, "--pooling") == "mean"
        assert "mean" in dict(found.reasons)["pooling"]

    def test_a_long_context_is_bounded(self) -> None:
        found = plan(msgspec.structs.replace(self.MODEL, context_tokens=32_768))
        assert found.context_tokens == 8192


class TestGpu:
    def test_all_layers_where_they_fit(self) -> None:
        found = plan(probe=make_probe(cuda(24)))
        assert (found.device, found.gpu_layers, found.layers) == ("gpu", "fit", 33)
        assert (option(found, "--gpu-layers"), option(found, "--fit")) == ("auto", "on")
        assert "--no-warmup" not in found.argv
        assert found.bytes_on_gpu > 5 * GIB
        assert found.bytes_on_gpu <= 23 * GIB
        assert (found.slots, found.context_tokens >= 8192) == (4, True)

    def test_the_ladder(self) -> None:
        half, cpu = plan(probe=make_probe(cuda(24))).fallbacks
        assert (half.device, half.gpu_layers, option(half, "--gpu-layers")) == ("gpu+cpu", 16, "16")
        assert (option(half, "--fit"), half.fallbacks) == ("off", ())
        assert (cpu.device, cpu.gpu_layers, option(cpu, "--gpu-layers")) == ("cpu", 0, "0")
        assert option(cpu, "--device") == "none"
        assert ("CUDA_VISIBLE_DEVICES", "") in cpu.environment
        assert cpu.bytes_on_gpu == 0
        assert "16 of 33 layers" in dict(half.reasons)["fallback"]
        assert "on the CPU" in dict(cpu.reasons)["fallback"]

    @pytest.mark.parametrize("free_gib", [24, 12, 8.5, 6, 3])
    def test_every_rung_takes_less_of_the_gpu(self, free_gib: float) -> None:
        found = plan(probe=make_probe(cuda(free_gib)))
        sizes = [rung.bytes_on_gpu for rung in (found, *found.fallbacks)]
        assert sizes[1] < 0.75 * sizes[0]
        assert sizes[-1] == 0
        assert {rung.slots for rung in found.fallbacks} == {found.slots}
        assert all(rung.context_tokens <= found.context_tokens for rung in found.fallbacks)

    def test_slots_are_given_up_for_the_gpu(self) -> None:
        found = plan(probe=make_probe(cuda(8.5)))
        assert (found.device, found.slots) == ("gpu", 2)
        assert found.context_tokens >= 8192

    def test_as_many_layers_as_fit(self) -> None:
        found = plan(probe=make_probe(cuda(5)))
        assert found.device == "gpu+cpu"
        assert found.bytes_on_gpu <= 4 * GIB
        assert option(found, "--gpu-layers") == "auto"
        assert found.fallbacks[-1].device == "cpu"

    def test_an_engine_that_cannot_fit_by_itself_gets_the_number(self) -> None:
        probe = make_probe(cuda(24))
        found = plan(probe=msgspec.structs.replace(probe, flags=probe.flags - {"--fit"}))
        assert (found.gpu_layers, option(found, "--gpu-layers")) == (33, "33")

    def test_a_gpu_that_is_too_small_for_anything(self) -> None:
        found = plan(probe=make_probe(cuda(1.2)))
        assert found.device == "cpu"
        assert "no layer fits" in dict(found.reasons)["device"]

    def test_layers_that_are_asked_for(self) -> None:
        found = plan(options=LoadOptions(gpu_layers=10), probe=make_probe(cuda(24)))
        assert (found.gpu_layers, found.device, option(found, "--fit")) == (10, "gpu+cpu", "off")
        assert [rung.gpu_layers for rung in found.fallbacks] == [5, 0]
        assert plan(options=LoadOptions(gpu_layers=999), probe=make_probe(cuda(24))).gpu_layers == 33

    def test_no_layers_asked_for(self) -> None:
        found = plan(options=LoadOptions(gpu_layers=0), probe=make_probe(cuda(24)))
        assert (found.device, found.slots) == ("cpu", 4)
        assert "asked for" in dict(found.reasons)["device"]
        assert not {"gpu_unused", "gpu_fallback", "fallback"} & subjects(found)
        assert [(rung.device, rung.context_tokens) for rung in found.fallbacks] == [("cpu", 16_384)]

    def test_two_gpus_share(self) -> None:
        found = plan(probe=make_probe(cuda(6), cuda(3, index=1)))
        sizes = dict(found.bytes_by_device)
        assert sizes["CUDA0"] == pytest.approx(2 * sizes["CUDA1"], rel=0.01)

    def test_the_main_one_of_two(self) -> None:
        found = plan(options=LoadOptions(main_gpu=1), probe=make_probe(cuda(24), cuda(12, index=1)))
        assert (option(found, "--split-mode"), option(found, "--main-gpu")) == ("none", "1")
        assert {name for name, _ in found.bytes_by_device} == {"cpu", "CUDA1"}

    def test_a_main_one_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(UnsupportedError, match="main_gpu must be below 1"):
            plan(options=LoadOptions(main_gpu=1), probe=make_probe(cuda(24)))
        assert plan(options=LoadOptions(main_gpu=1)).device == "cpu"

    def test_a_gpu_of_its_own_goes_before_one_that_shares_memory(self) -> None:
        shared = Device("Vulkan1", "iGPU", total_bytes=16 * GIB, free_bytes=16 * GIB, integrated=True)
        found = plan(probe=make_probe(cuda(24), shared))
        assert option(found, "--device") == "CUDA0"
        assert {name for name, _ in found.bytes_by_device} == {"cpu", "CUDA0"}

    def test_shared_memory_counts_once(self) -> None:
        metal = Device("Metal", "Apple M9", total_bytes=12 * GIB, free_bytes=12 * GIB)
        found = plan(probe=make_probe(metal), hardware=make_hardware(ram_gib=9, system="Darwin"))
        assert found.device == "gpu"
        assert found.bytes_total <= 9 * GIB

    @pytest.mark.parametrize(("vendor", "install"), [("nvidia", "cu128"), ("amd", "rocm"), ("intel", "vulkan")])
    def test_a_gpu_that_the_engine_cannot_use_is_told_with_the_way_out(self, vendor: str, install: str) -> None:
        gpu = Gpu(0, "Shiny 9000", vendor, total_bytes=8 * GIB, free_bytes=8 * GIB, found_by="nvml")  # type: ignore[arg-type]
        found = plan(hardware=make_hardware(gpus=(gpu,)))
        assert found.device == "cpu"
        told = dict(found.reasons)["gpu_unused"]
        assert "Shiny 9000" in told
        assert install in told

    def test_the_cpu_is_no_fallback_where_it_has_no_room(self) -> None:
        found = plan(probe=make_probe(cuda(24)), hardware=make_hardware(ram_gib=3))
        assert found.device == "gpu"
        assert all(rung.device != "cpu" for rung in found.fallbacks)


class TestRefusals:
    def test_a_damaged_model(self) -> None:
        model = make_model(damage="blob sha256-ab… is missing")
        assert not DRIVER.supports(model).supported
        with pytest.raises(ModelDamagedError, match="is missing"):
            plan(model)

    @pytest.mark.parametrize("fields", [{"format": "safetensors"}, {"files": ()}])
    def test_what_it_does_not_run(self, fields: dict[str, object]) -> None:
        assert not DRIVER.supports(make_model(**fields)).supported
        with pytest.raises(UnsupportedError):
            plan(make_model(**fields))

    def test_a_model_without_a_template_is_refused_for_chat(self) -> None:
        bare = make_model(chat_template=None)
        found = plan(bare)
        assert not found.chat
        assert "refused for chat" in dict(found.reasons)["template"]
        assert plan(bare, LoadOptions(chat_template="chatml")).chat


def test_a_model_that_says_nothing_of_itself_still_has_a_plan() -> None:
    bare = make_model(context_tokens=None, embedding_length=None, layers=None, kv_bytes_per_token=None)
    assert plan(bare).context_tokens == 4096
    assert plan(bare, probe=make_probe(cuda(24))).layers is None


def test_planning_is_pure(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look at the machine: everything is in the arguments."""
    monkeypatch.setattr("os.sched_getaffinity", lambda *_: pytest.fail("asked"), raising=False)
    monkeypatch.setattr("pathlib.Path.open", lambda *_: pytest.fail("opened"))
    probe = make_probe(cuda(24))
    make_plan(make_model(), LoadOptions(), make_hardware(probe), probe)
