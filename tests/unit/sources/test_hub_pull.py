"""Pulling GGUF models from a hub that is honest, broken or hostile."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
from support.hub import Handler, HubServer, running_hub
from support.store_checks import assert_valid_store
from support.tiny_gguf import CHAT_VALUES, TinyTensor, gguf_bytes

from oprel.errors import InsufficientMemoryError, InvalidRequestError, OprelError, SourceError
from oprel.schema import Hardware
from oprel.sources import Puller, PullProgress, PullWish, RegistrySource, resolve_source
from oprel.sources.hub import HubAccess
from oprel.sources.retries import ATTEMPTS
from oprel.store import Aliases, Catalog, Store, Trees

REPO = "tiny-org/Tiny-GGUF"
TOKEN = "hf_secret"
PROJECTOR: dict[str, object] = {
    "general.architecture": "clip",
    "general.type": "mmproj",
    "clip.has_vision_encoder": True,
}


def model_bytes(name: str = "tiny") -> bytes:
    return gguf_bytes({**CHAT_VALUES, "general.name": name})


def projector_bytes(name: str = "eyes") -> bytes:
    return gguf_bytes({**PROJECTOR, "general.name": name})


def part_bytes(number: int, count: int, *, tensors: int | None = None) -> bytes:
    own: tuple[TinyTensor, ...] = ((f"blk.{number}.weight", (32, 4), 0, bytes([number]) * 512),)
    split = {"split.no": number, "split.count": count, "split.tensors.count": tensors or count}
    return gguf_bytes({**(CHAT_VALUES if number == 0 else {}), **split}, own)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with running_hub() as server:
        yield server


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr("oprel.sources.retries.wait_before_retry", lambda state: 0.0)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    (tmp_path / "aliases.toml").write_text(f'[aliases]\n"tiny:1b" = "{REPO}"\n"tiny" = "{REPO}"\n')
    store = Store(tmp_path / "models", state_dir=tmp_path / "state")
    trees = Trees(tmp_path / "trees", state_dir=tmp_path / "state")
    return Catalog(store, aliases=Aliases.load(tmp_path / "aliases.toml"), shelves=(trees,))


def machine(ram: int = 16 << 30) -> Hardware:
    return Hardware("Linux", "x86_64", 4, 4, ram, ram)


def pull(
    catalog: Catalog,
    access: HubAccess,
    name: str = f"hf.co/{REPO}",
    *,
    wish: PullWish | None = None,
    ram: int = 16 << 30,
) -> list[PullProgress]:
    trees = next(shelf for shelf in catalog.shelves if isinstance(shelf, Trees))
    puller = Puller(catalog, clock=lambda: 0.0, trees=trees, read_access=lambda: access, hardware=lambda: machine(ram))
    return asyncio.run(collect(puller.pull(name, wish=wish)))


async def collect(lines: AsyncGenerator[PullProgress, None]) -> list[PullProgress]:
    async with asyncio.timeout(60):
        return [line async for line in lines]


def statuses(lines: list[PullProgress]) -> list[str]:
    return list(dict.fromkeys(line.status for line in lines))


def assert_nothing_is_left(catalog: Catalog) -> None:
    assert catalog.list() == ()
    store = catalog.store
    assert [path for path in store.state_dir.rglob("*") if path.suffix in (".partial", ".part")] == []
    if store.models_dir.exists():
        assert assert_valid_store(store.models_dir) == 0
    assert [path for path in store.models_dir.rglob("*") if path.is_file()] == []


def test_a_pull_in_ollamas_words(hub: HubServer, catalog: Catalog) -> None:
    data = model_bytes()
    digest = hashlib.sha256(data).hexdigest()
    repo = hub.add(REPO, {"tiny-Q4_K_M.gguf": data, "LICENSE": b"Be kind.", "README.md": b"# Tiny"})

    lines = pull(catalog, hub.access())

    assert statuses(lines) == [
        "pulling manifest",
        f"pulling {digest[:12]}",
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]
    assert PullProgress(f"pulling {digest[:12]}", f"sha256:{digest}", len(data), len(data)) in lines
    model = catalog.find(f"hf.co/{REPO}")
    assert model.name == f"hf.co/{REPO}:Q4_K_M"
    assert model.weights.digest == digest
    assert model.licenses == ("Be kind.",)
    assert model.aliases == ("tiny:1b", "tiny:latest")
    assert assert_valid_store(catalog.store.models_dir) == 1
    (version,) = catalog.versions(model.name)
    assert (version.action, version.source, version.revision) == ("pull", f"hf.co/{REPO}:Q4_K_M", repo.commit())


@pytest.mark.parametrize(
    "name",
    [f"hf.co/{REPO}", f"huggingface.co/{REPO}", REPO, f"https://hf.co/{REPO}", f"{REPO}:latest", "tiny:1b", "TINY:1B"],
)
def test_every_way_to_write_it_leads_to_one_model(hub: HubServer, catalog: Catalog, name: str) -> None:
    hub.add(REPO, {"tiny-Q4_K_M.gguf": model_bytes()})
    pull(catalog, hub.access(), name)
    assert catalog.find(name).name == f"hf.co/{REPO}:Q4_K_M"


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        (f"hf.co/{REPO}:Q8_0", "Q8_0"),
        (f"{REPO}:q8_0", "Q8_0"),
        ("tiny:1b-q8_0", "Q8_0"),
        ("tiny:1b-instruct-q4_K_M", "Q4_K_M"),
        ("tiny:q4_K_M", "Q4_K_M"),
        ("tiny:70b-q4_K_M", None),
        (f"{REPO}:tiny.Q8_0.gguf", "tiny.Q8_0.gguf"),
        (f"{REPO}:fp16", "fp16"),
    ],
)
def test_a_quantization_that_is_named(hub: HubServer, catalog: Catalog, name: str, stored: str | None) -> None:
    hub.add(REPO, {f"tiny.{label}.gguf": model_bytes(label) for label in ("Q4_K_M", "Q8_0", "f16")})
    if stored is None:  # no alias has that size: the name is one of Ollama's registry
        assert isinstance(resolve_source(name, aliases=catalog.aliases), RegistrySource)
        return
    lines = pull(catalog, hub.access(), name)
    assert catalog.find(name).name == f"hf.co/{REPO}:{stored}"
    assert next(line.note for line in lines if line.note is not None).endswith("as asked for")


def test_without_a_name_the_best_that_fits_is_taken_and_the_reason_told(hub: HubServer, catalog: Catalog) -> None:
    hub.add(REPO, {f"tiny.{label}.gguf": model_bytes(label) for label in ("Q2_K", "Q4_K_M", "Q8_0", "f16")})
    lines = pull(catalog, hub.access())
    (note,) = {line.note for line in lines if line.note is not None}
    assert note.startswith("Q8_0 (0 MB): the best that fits 70% of this machine's memory (12.0 GB)")
    assert catalog.find(REPO).name.endswith(":Q8_0")


def test_a_quantization_that_is_not_there_is_answered_by_those_that_are(hub: HubServer, catalog: Catalog) -> None:
    hub.add(REPO, {"tiny.Q4_K_M.gguf": model_bytes(), "tiny.Q8_0.gguf": model_bytes("b")})
    with pytest.raises(InvalidRequestError, match=r"has no 'Q5_K_M'; it has Q8_0, Q4_K_M\."):
        pull(catalog, hub.access(), f"{REPO}:Q5_K_M")
    assert_nothing_is_left(catalog)


@pytest.mark.parametrize("name", [REPO, f"{REPO}:Q2_K"])
def test_two_bits_only_where_they_are_allowed(hub: HubServer, catalog: Catalog, name: str) -> None:
    hub.add(REPO, {"tiny.Q2_K.gguf": model_bytes()})
    with pytest.raises(InvalidRequestError, match=r"Q2_K of 'tiny-org/Tiny-GGUF' loses much.*--allow-low-quality"):
        pull(catalog, hub.access(), name)
    assert_nothing_is_left(catalog)
    pull(catalog, hub.access(), name, wish=PullWish(allow_low_quality=True))
    assert catalog.find(name).name.endswith(":Q2_K")


def test_what_may_be_taken_bounds_the_choice(hub: HubServer, catalog: Catalog) -> None:
    hub.add(REPO, {"tiny.Q4_K_M.gguf": model_bytes()}, parameters=8_000_000_000)
    with pytest.raises(InsufficientMemoryError, match=r"needs 1\.3 GB .* and 1\.0 GB can be used"):
        pull(catalog, hub.access(), wish=PullWish(max_memory_bytes=1_000_000_000))
    assert_nothing_is_left(catalog)


def test_all_parts_of_a_split_file_become_layers_in_order(hub: HubServer, catalog: Catalog) -> None:
    parts = [part_bytes(number, 3) for number in range(3)]
    names = [f"Q4_K_M/tiny-Q4_K_M-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    listed = dict(reversed(list(zip(names, parts, strict=True))))  # the hub's order isn't ours
    hub.add(REPO, listed)
    pull(catalog, hub.access())
    model = catalog.find(REPO)
    assert model.damage is None
    weights = [file.digest for file in model.files if file.role == "weights"]
    assert weights == [hashlib.sha256(part).hexdigest() for part in parts]
    assert model.parameter_count == 3 * 128
    assert len(catalog.metadata(model).tensors) == 3
    assert assert_valid_store(catalog.store.models_dir) == 1


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"a-00001-of-00002.gguf": part_bytes(0, 2)}, "doesn't have all 2 parts of 'a'"),
        (
            {"a-00001-of-00002.gguf": part_bytes(1, 2), "a-00002-of-00002.gguf": part_bytes(0, 2)},
            "no architecture",
        ),
        (
            {"a-00001-of-00002.gguf": part_bytes(0, 2), "a-00002-of-00002.gguf": part_bytes(2, 3)},
            "file 2 of 2 says that it is part 3 of 3",
        ),
        (
            {"a-00001-of-00002.gguf": part_bytes(0, 2, tensors=9), "a-00002-of-00002.gguf": part_bytes(1, 2)},
            "hold 2 tensors instead of 9",
        ),
        ({"a.gguf": part_bytes(0, 2)}, "file 1 of 1 says that it is part 1 of 2"),
        ({"a.gguf": projector_bytes()}, "of the kind 'mmproj'"),
        ({"a.gguf": b"<html>"}, "doesn't begin with 'GGUF'"),
    ],
    ids=["missing", "swapped", "of-another", "tensors", "a-part-alone", "a-projector", "no-gguf"],
)
def test_files_that_make_no_model_leave_nothing(
    hub: HubServer, catalog: Catalog, files: dict[str, bytes], problem: str
) -> None:
    hub.add(REPO, files)
    with pytest.raises(SourceError, match=problem):
        pull(catalog, hub.access())
    assert_nothing_is_left(catalog)


def test_a_projector_comes_along_in_f16(hub: HubServer, catalog: Catalog) -> None:
    projectors = {f"mmproj-tiny-{label}.gguf": projector_bytes(label) for label in ("F32", "BF16", "f16", "Q8_0")}
    hub.add(REPO, {"tiny-Q4_K_M.gguf": model_bytes(), **projectors, "tiny.imatrix.gguf": b"GGUF"})
    pull(catalog, hub.access())
    model = catalog.find(REPO)
    (projector,) = [file for file in model.files if file.role == "projector"]
    assert projector.digest == hashlib.sha256(projector_bytes("f16")).hexdigest()
    assert "vision" in model.capabilities


def test_a_card_names_the_licence_where_no_file_does(hub: HubServer, catalog: Catalog) -> None:
    hub.add(REPO, {"tiny-Q4_K_M.gguf": model_bytes()}, license="mit")
    pull(catalog, hub.access())
    assert catalog.find(REPO).licenses == (f"mit (as the card of {REPO} says)",)


def test_what_is_here_is_not_fetched_again_unless_it_is_damaged(hub: HubServer, catalog: Catalog) -> None:
    hub.add(REPO, {"tiny-Q4_K_M.gguf": model_bytes()})
    pull(catalog, hub.access())
    hub.cdn.requests.clear()
    assert pull(catalog, hub.access())[-1].status == "success"
    assert hub.cdn.requests == []
    path = Path(catalog.find(REPO).weights.path)
    path.chmod(0o644)
    path.write_bytes(b"x" * path.stat().st_size)
    pull(catalog, hub.access())
    assert hub.cdn.requests
    assert assert_valid_store(catalog.store.models_dir) == 1


HOSTILE = [
    "..\\..\\x-Q4_K_M.gguf",
    "/etc/x-Q4_K_M.gguf",
    "a/../../x-Q4_K_M.gguf",
    "a//x-Q4_K_M.gguf",
    "./x-Q4_K_M.gguf",
    "x\u202efugg.4Q.gguf",
    "x\n-Q4_K_M.gguf",
    "x\u200b-Q4_K_M.gguf",
    "",
    "x" * 2000 + ".gguf",
]


@pytest.mark.parametrize("name", HOSTILE, ids=[str(number) for number in range(len(HOSTILE))])
def test_a_repository_with_a_hostile_name_is_refused_whole(hub: HubServer, catalog: Catalog, name: str) -> None:
    hub.add(REPO, {name: model_bytes("bad"), "tiny-Q4_K_M.gguf": model_bytes()})
    with pytest.raises(SourceError, match="isn't a name that a file may have"):
        pull(catalog, hub.access())
    assert hub.cdn.requests == []
    assert_nothing_is_left(catalog)


def test_a_name_in_another_script_is_only_a_name(hub: HubServer, catalog: Catalog) -> None:
    hub.add(REPO, {"模型 é-Q4_K_M.gguf": model_bytes()})
    pull(catalog, hub.access())
    assert catalog.find(REPO).name == f"hf.co/{REPO}:Q4_K_M"


def test_another_digest_is_refused(hub: HubServer, catalog: Catalog) -> None:
    hub.add(REPO, {"tiny-Q4_K_M.gguf": model_bytes()}, digests={"tiny-Q4_K_M.gguf": "0" * 64})
    with pytest.raises(SourceError, match="digest mismatch"):
        pull(catalog, hub.access())
    assert_nothing_is_left(catalog)


def test_a_file_without_a_digest_is_refused(hub: HubServer, catalog: Catalog) -> None:
    hub.add(REPO, {"tiny-Q4_K_M.gguf": model_bytes()}, digests={"tiny-Q4_K_M.gguf": None})
    with pytest.raises(SourceError, match="gives no SHA-256"):
        pull(catalog, hub.access())
    assert hub.cdn.requests == []


@pytest.mark.parametrize("lie", [-1, 1], ids=["shorter", "longer"])
def test_a_size_that_is_not_true_is_refused(hub: HubServer, catalog: Catalog, lie: int) -> None:
    data = model_bytes()
    hub.add(REPO, {"tiny-Q4_K_M.gguf": data}, sizes={"tiny-Q4_K_M.gguf": len(data) + lie})
    with pytest.raises(SourceError):
        pull(catalog, hub.access())
    assert_nothing_is_left(catalog)


def test_a_broken_download_goes_on_where_it_was(hub: HubServer, catalog: Catalog) -> None:
    data = gguf_bytes({**CHAT_VALUES, "general.name": "large"}, [("w", (32, 4 << 12), 0, bytes(512) * (4 << 12))])
    hub.add(REPO, {"tiny-Q4_K_M.gguf": data})
    hub.cdn.cuts = [len(data) // 2]
    pull(catalog, hub.access())
    assert hub.cdn.sent_bytes <= len(data) + (1 << 20)
    assert catalog.find(REPO).damage is None


# -- who may have it


@pytest.mark.parametrize(
    ("token", "problem"),
    [
        (None, f"'{REPO}' is gated: ask for access on its page at http://.*/{REPO}, and set HF_TOKEN"),
        ("hf_other", f"'{REPO}' is gated: ask for access on its page at http://.*, with the account that"),
    ],
)
def test_a_gated_repository_says_how_to_get_in(
    hub: HubServer, catalog: Catalog, token: str | None, problem: str
) -> None:
    hub.add(REPO, {"tiny-Q4_K_M.gguf": model_bytes()}, gated=True)
    with pytest.raises(SourceError, match=problem) as caught:
        pull(catalog, hub.access(token))
    assert "hf_other" not in str(caught.value)
    assert_nothing_is_left(catalog)


def test_the_token_goes_to_the_hub_and_not_to_where_that_redirects(hub: HubServer, catalog: Catalog) -> None:
    hub.add(REPO, {"tiny-Q4_K_M.gguf": model_bytes()}, gated=True, private=True)
    pull(catalog, hub.access(TOKEN))
    assert all(headers.get("authorization") == f"Bearer {TOKEN}" for _, headers in hub.requests)
    assert hub.cdn.requests
    assert not any("authorization" in headers for _, headers in hub.cdn.requests)


@pytest.mark.parametrize(
    ("token", "problem"),
    [(None, "isn't on the hub, or isn't open to all: check the name, or set HF_TOKEN"), (TOKEN, "isn't on the hub")],
)
def test_a_repository_that_is_not_there(hub: HubServer, catalog: Catalog, token: str | None, problem: str) -> None:
    with pytest.raises(SourceError, match=problem) as caught:
        pull(catalog, hub.access(token))
    assert TOKEN not in str(caught.value)


def refuse(status: int, headers: dict[str, str] | None = None, times: int = 1 << 30) -> object:
    left = [times]

    def respond(handler: Handler) -> None:
        left[0] -= 1
        if left[0] >= 0:
            handler.answer(status, b"{}", headers)
        else:
            handler.server.respond(handler)

    return respond


def test_429_is_told_when_it_stays(hub: HubServer, catalog: Catalog) -> None:
    hub.special[f"/api/models/{REPO}/revision/main"] = refuse(429, {"Retry-After": "2"})  # type: ignore[assignment]
    with pytest.raises(SourceError, match="too many requests from here; wait a few minutes, or set HF_TOKEN"):
        pull(catalog, hub.access())
    assert len(hub.requests) == ATTEMPTS


def test_429_waits_as_long_as_it_is_asked_to(hub: HubServer, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    hub.add(REPO, {"tiny-Q4_K_M.gguf": model_bytes()})
    hub.special[f"/api/models/{REPO}/revision/main"] = refuse(429, {"Retry-After": "7"}, 1)  # type: ignore[assignment]
    monkeypatch.undo()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("oprel.sources.retries.pause", sleep)
    assert pull(catalog, hub.access())[-1].status == "success"
    assert waits == [7.0]


def test_a_file_that_went_away_meanwhile(hub: HubServer, catalog: Catalog) -> None:
    repo = hub.add(REPO, {"tiny-Q4_K_M.gguf": model_bytes()})
    hub.special[hub.resolve_path(repo, "tiny-Q4_K_M.gguf")] = refuse(404)  # type: ignore[assignment]
    with pytest.raises(SourceError, match="has changed while it was fetched; pull it again"):
        pull(catalog, hub.access())
    assert_nothing_is_left(catalog)


def test_no_network(catalog: Catalog) -> None:
    access = HubAccess("http://127.0.0.1:9", is_configured=True)
    with pytest.raises(SourceError, match="can't be reached; is there a network"):
        pull(catalog, access)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"sha": "../x", "siblings": []}', b"[" * 10_000, b'{"sha": 1}',
     b'{"siblings": [{"rfilename": 1}]}', b'{"siblings": {"a": 1}}'],
)  # fmt: skip
def test_an_answer_that_is_none_is_one_sentence(hub: HubServer, catalog: Catalog, body: bytes) -> None:
    hub.special[f"/api/models/{REPO}/revision/main"] = lambda handler: handler.answer(200, body)
    with pytest.raises(SourceError, match=r"hub"):
        pull(catalog, hub.access())


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest", "http://[::ffff:169.254.169.254]/", "http://10.1.2.3/x"]
)
def test_a_redirect_to_an_address_inside_is_refused(hub: HubServer, catalog: Catalog, target: str) -> None:
    repo = hub.add(REPO, {"tiny-Q4_K_M.gguf": model_bytes()})
    hub.special[hub.resolve_path(repo, "tiny-Q4_K_M.gguf")] = lambda handler: handler.answer(
        302, b"", {"Location": target}
    )
    with pytest.raises(SourceError, match=r"isn't https|inside this machine"):
        pull(catalog, hub.access())
    assert_nothing_is_left(catalog)


def test_an_endpoint_that_nobody_configured_may_not_be_inside(hub: HubServer, catalog: Catalog) -> None:
    with pytest.raises(OprelError, match="isn't https"):
        pull(catalog, HubAccess(hub.url))
    assert hub.requests == []
