"""POST /api/show: all that is known of one model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from oprel.dialects.ollama import admission
from oprel.dialects.ollama.durations import local_time
from oprel.dialects.ollama.errors import refusal
from oprel.dialects.ollama.gojson import dumps, go_quoted
from oprel.dialects.ollama.listing import Details, details, shown_capabilities
from oprel.dialects.ollama.names import displayed
from oprel.dialects.ollama.wire import ShowRequest, read
from oprel.dialects.services import Services
from oprel.drivers.prospects import Prospect
from oprel.errors import ModelNotFoundError, OprelError
from oprel.schema import Model, Plan
from oprel.schema.chat_form import ChatForm
from oprel.store import GgufMetadata, SkippedArray, read_gguf
from oprel.store.modelfile import Instruction, Modelfile

__all__ = ["show"]

# In the order in which Ollama lists them.
_CAPABILITIES = ("completion", "tools", "insert", "vision", "embedding", "thinking", "image", "audio")
_OWN_PLACES = frozenset({"general.name", "tokenizer.chat_template"})
_BARE_TEMPLATE = "{{ .Prompt }}"


class ShownMessage(Struct, frozen=True):
    role: str
    content: str


class ShownTensor(Struct, frozen=True):
    name: str
    type: str
    shape: Sequence[int]


class ShownPlan(Struct, frozen=True, omit_defaults=True):
    """What loading it would do, or did. `command` names files of this machine, as the model file does."""

    engine: str
    device: str
    gpu_layers: int | str
    bytes_by_device: Mapping[str, int]
    context_tokens: int
    slots: int
    threads: int
    command: Sequence[str]
    reasons: Mapping[str, str]
    layers: int | None = None


class ShownServing(Struct, frozen=True, omit_defaults=True):
    """What Oprel tells beside Ollama's fields. No `driver`: nothing can serve the model, and `problem` says why.
    `template` says which kind of template conversations are put into."""

    reason: str
    others: Mapping[str, str]
    capabilities: Sequence[str]
    sampling: Sequence[str]
    loaded: bool
    template: ChatForm | None = None
    driver: str | None = None
    context_tokens: int | None = None
    problem: str | None = None
    plan: ShownPlan | None = None


class Shown(Struct, frozen=True, kw_only=True, omit_defaults=True):
    license: str = ""
    modelfile: str = ""
    parameters: str = ""
    template: str = ""
    system: str = ""
    details: Details
    messages: Sequence[ShownMessage] = ()
    model_info: Mapping[str, Any]
    projector_info: Mapping[str, Any] = {}
    tensors: Sequence[ShownTensor] = ()
    capabilities: Sequence[str] = ()
    modified_at: str
    requires: str = ""
    oprel: ShownServing


async def show(services: Services, body: bytes, *, user_agent: str = "") -> bytes:
    asked, _ = read(body, ShowRequest)
    raw = asked.model or asked.name
    if not raw:
        raise refusal("model_required")
    try:
        _, model = await admission.find(services, raw, cloud_row="cloud_model_details")
    except ModelNotFoundError:
        raise refusal("no_such_model", name=displayed(raw)) from None
    (prospect,) = await services.scheduler.prospects([model])
    # Copilot shows the base name, and would show one that differs from what its user chose.
    basename = raw if user_agent.startswith("GitHubCopilotChat/") else None
    return await asyncio.to_thread(_shown, services, model, asked, displayed(raw), basename, prospect)


def _shown(
    services: Services, model: Model, asked: ShowRequest, name: str, basename: str | None, prospect: Prospect
) -> bytes:
    weights = _metadata(services, model, asked.verbose)
    projector = next((file for file in model.files if file.role == "projector"), None)
    info = _model_info(weights, verbose=asked.verbose) if weights else _known_info(model)
    if basename is not None:
        info["general.basename"] = basename
    parameters = dict(model.parameters)
    system = asked.system or model.system or ""
    return dumps(
        Shown(
            license="\n".join(model.licenses),
            modelfile=_modelfile(model, name, system, {**parameters, **asked.options}),
            parameters="\n".join(f"{key:<30} {_go_literal(value)}" for key, value in _each(parameters)),
            template=_template(model),
            system=system,
            details=details(model, parent=model.parent),
            messages=[ShownMessage(message.role, message.text) for message in model.messages],
            model_info=info,
            projector_info=_file_info(projector.path, verbose=asked.verbose) if projector else {},
            tensors=[ShownTensor(t.name, t.type, t.shape) for t in weights.tensors] if weights else (),
            capabilities=[name for name in _CAPABILITIES if name in shown_capabilities(model)],
            modified_at=local_time(model.modified_at),
            requires=model.requires,
            oprel=_serving(prospect, model),
        )
    )


def _serving(prospect: Prospect, model: Model) -> ShownServing:
    return ShownServing(
        template=model.chat_form,
        driver=prospect.driver,
        reason=prospect.reason,
        others=dict(prospect.others),
        capabilities=prospect.capabilities.names,
        sampling=sorted(prospect.capabilities.sampling),
        context_tokens=prospect.context_tokens,
        loaded=prospect.is_loaded,
        problem=prospect.problem,
        plan=None if prospect.plan is None else _plan(prospect.plan),
    )


def _plan(plan: Plan) -> ShownPlan:
    return ShownPlan(
        engine=plan.engine,
        device=plan.device,
        layers=plan.layers,
        gpu_layers=plan.gpu_layers,
        bytes_by_device=dict(plan.bytes_by_device),
        context_tokens=plan.context_tokens,
        slots=plan.slots,
        threads=plan.threads,
        command=plan.argv,
        reasons=dict(plan.reasons),
    )


def _metadata(services: Services, model: Model, verbose: bool) -> GgufMetadata | None:
    """None where the file can't be read: the rest of the model is shown all the same."""
    try:
        return services.catalog.metadata(model, full=True) if verbose else services.catalog.metadata(model)
    except (OprelError, LookupError, StopIteration):
        return None


def _file_info(path: str, *, verbose: bool) -> dict[str, Any]:
    try:
        return _model_info(read_gguf(Path(path)), verbose=verbose)
    except OprelError:
        return {}


def _model_info(metadata: GgufMetadata, *, verbose: bool) -> dict[str, Any]:
    """Arrays are null unless they are asked for: a vocabulary is megabytes."""
    shown: dict[str, Any] = {"general.parameter_count": metadata.parameter_count}
    for key, value in metadata.values.items():
        if key in _OWN_PLACES:
            continue
        is_long = isinstance(value, SkippedArray) or (isinstance(value, list) and bool(value) and not verbose)
        shown[key] = None if is_long else value
    return dict(sorted(shown.items()))


def _known_info(model: Model) -> dict[str, Any]:
    """For a model without GGUF metadata: the same keys, as far as they are known."""
    family = next(iter(model.families), "")
    if not family or model.format == "gguf" or model.damage is not None:
        return {}
    known = {
        "general.architecture": family,
        "general.parameter_count": model.parameter_count,
        f"{family}.block_count": model.layers,
        f"{family}.context_length": model.context_tokens,
        f"{family}.embedding_length": model.embedding_length,
    }
    return {key: value for key, value in sorted(known.items()) if value is not None}


def _template(model: Model) -> str:
    """The one that is used."""
    used = model.chat_template if model.chat_form == "jinja" else model.template
    return used or _BARE_TEMPLATE


def _each(parameters: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in sorted(parameters.items()):
        for item in value if isinstance(value, list | tuple) else (value,):
            yield name, item


def _go_literal(value: object) -> str:
    """As Go's `%#v` shows what it decoded from JSON, where every number is a float64."""
    if isinstance(value, str):
        return go_quoted(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return _go_float(float(value))
    return str(value)


def _plain(value: object) -> str:
    """As Go's `%v` shows it, which a Modelfile's reader takes back: whole numbers without an exponent."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e21 and value == int(value):
        return str(int(value))
    return _go_literal(value)


def _go_float(value: float) -> str:
    """Go's shortest `%g`: exponents below 1e-04 and from 1e+21 on, and from 1e+06 on for `%#v`."""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if 1e-4 <= abs(value) < 1e6:
        return repr(value)
    digits, _, exponent = f"{value!r}".partition("e")
    if exponent:
        return f"{digits.removesuffix('.0')}e{int(exponent):+03d}"
    mantissa = f"{value:.16e}"
    number, _, power = mantissa.partition("e")
    for places in range(17):
        shorter = f"{value:.{places}e}"
        if float(shorter) == value:
            number, _, power = shorter.partition("e")
            break
    return f"{number}e{int(power):+03d}"


def _modelfile(model: Model, name: str, system: str, parameters: Mapping[str, Any]) -> str:
    """Of it the same model can be made again. A Jinja template isn't in it, since that one is in the weights; the bare
    template in its place gives way to it."""
    head = (
        '# Modelfile generated by "ollama show"\n'
        "# To build a new Modelfile based on this, replace FROM with:\n"
        f"# FROM {name}\n\n"
    )
    return head + str(Modelfile(tuple(_instructions(model, name, system, parameters))))


def _instructions(model: Model, name: str, system: str, parameters: Mapping[str, Any]) -> Iterator[Instruction]:
    words = {"weights": "from", "adapter": "adapter", "draft": "draft", "projector": "from"}
    if not any(file.role in words for file in model.files):
        yield Instruction("from", name)
    for role, word in words.items():
        yield from (Instruction(word, file.path) for file in model.files if file.role == role)
    texts = {
        "template": model.template or _BARE_TEMPLATE,
        "system": system,
        "renderer": model.renderer,
        "parser": model.parser,
    }
    yield from (Instruction(word, text) for word, text in texts.items() if text)
    for key, value in _each(parameters):
        yield Instruction("parameter", value if isinstance(value, str) else _plain(value), key)
    yield from (Instruction("license", text) for text in model.licenses)
    yield from (Instruction("message", message.text, message.role) for message in model.messages)
    if model.requires:
        yield Instruction("requires", model.requires)
