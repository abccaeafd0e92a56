"""Which of a repository's quantizations to take, and why. Pure.

1. Named: that one, whatever it needs, unless it has two bits or fewer and that wasn't allowed.
2. Else the best that fits, weights with 8,192 tokens of context, in this order of places:
   * the GPUs' free memory, less 1 GiB each: up to Q8_0, since reading weights costs little there;
   * 0.7 of this machine's memory: up to Q4_K_M, since a CPU's speed is what it reads for each token; better ones, up to
     Q8_0, while they stay below 2 GiB.
3. 16 and 32 bits only where there is nothing else: Q8_0 can't be told from them, at half the size.
4. Two bits and fewer only where they are allowed and nothing better fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from oprel.errors import InsufficientMemoryError, InvalidRequestError
from oprel.schema import Hardware
from oprel.sources.hub.files import Weights
from oprel.store.quantizations import is_low_quality

__all__ = ["CONTEXT_TOKENS", "Budget", "Choice", "choose_weights", "needed_bytes"]

CONTEXT_TOKENS = 8192
RAM_SHARE = 0.7
GPU_MARGIN_BYTES = 1 << 30
QUICK_ON_CPU_BYTES = 2 << 30
# Keys and values of a token in an 8B model (32 layers, 8 heads of 128, f16); others go by the root of their size, which
# is right within a factor of two from 135M to 70B.
_KV_BYTES_8B = 128 * 1024
_8B = 8e9
_ROOM_BYTES = 256 << 20  # scratch and the process itself

_BEST_FIRST = (
    "Q8_K_XL", "Q8_0", "Q8_K", "Q8", "Q6_K_XL", "Q6_K_L", "Q6_K", "Q6", "Q5_K_XL", "Q5_K_L", "Q5_K_M", "Q5_K", "Q5_K_S",
    "Q5_1", "Q5_0", "Q5",
    "Q4_K_XL", "Q4_K_L", "MXFP4_MOE", "MXFP4", "NVFP4", "Q4_K_M", "Q4_K", "Q4", "Q4_K_S", "IQ4_NL", "IQ4_XS",
    "Q4_1", "Q4_0",
    "Q3_K_XL", "Q3_K_L", "IQ3_M", "Q3_K_M", "Q3_K", "Q3", "IQ3_S", "Q3_K_S", "IQ3_XS", "IQ3_XXS",
    "Q2_K_XL", "Q2_K_L", "IQ2_M", "Q2_K", "Q2_K_S", "Q2", "IQ2_S", "IQ2_XS", "IQ2_XXS", "TQ2_0", "TQ1_0", "IQ1_M",
    "IQ1_S",
)  # fmt: skip
_RANKS = {label: rank for rank, label in enumerate(_BEST_FIRST)}
_FULL = ("F16", "BF16", "F32")
_CPU_CAP = _RANKS["Q4_K_M"]
_BITS_PER_WEIGHT = {"Q8": 8.5, "Q6": 6.6, "Q5": 5.6, "Q4": 4.8, "Q3": 3.9, "Q2": 3.0, "Q1": 2.0, "F16": 16, "F32": 32}


class Budget(Struct, frozen=True):
    """Bytes that a model may take, on the GPUs and in memory. `is_limited`: somebody gave a limit."""

    gpu_bytes: int
    ram_bytes: int
    is_limited: bool = False

    @classmethod
    def of(cls, hardware: Hardware, *, max_memory_bytes: int | None = None) -> Budget:
        gpu = sum(max(0, each.free_bytes - GPU_MARGIN_BYTES) for each in hardware.gpus)
        ram = int(hardware.ram_total_bytes * RAM_SHARE)
        if max_memory_bytes is None:
            return cls(gpu, ram)
        return cls(min(gpu, max_memory_bytes), min(ram, max_memory_bytes), is_limited=True)


class Choice(Struct, frozen=True):
    weights: Weights
    reason: str


def choose_weights(
    found: Sequence[Weights],
    *,
    repo: str,
    budget: Budget,
    asked: str | None = None,
    allow_low_quality: bool = False,
    parameters: int | None = None,
    kv_bytes_per_token: int | None = None,
    beside_bytes: int = 0,
) -> Choice:
    """`beside_bytes` is what comes with any of them (a projector). Raises InvalidRequestError for what isn't there or
    isn't allowed, InsufficientMemoryError where nothing fits."""
    if asked is not None:
        return _named(found, repo, asked, allow_low_quality)
    allowed = [each for each in found if allow_low_quality or not is_low_quality(each.label)]
    if not allowed:
        raise _too_low(repo, min(found, key=_rank))
    kept = _sensible(allowed)
    if len(kept) == 1 and not budget.is_limited:
        return Choice(kept[0], f"{_shown(kept[0])}: the only one that there is to take")

    def cost(each: Weights) -> int:
        return needed_bytes(each, parameters=parameters, kv_bytes_per_token=kv_bytes_per_token) + beside_bytes

    good = [each for each in kept if not is_low_quality(each.label)]
    low = [each for each in kept if is_low_quality(each.label)]
    for group in (good, low):
        if (choice := _best(group, cost, budget)) is not None:
            return choice
    smallest = min(kept, key=lambda each: each.size_bytes)
    raise _too_large(repo, smallest, cost(smallest), budget, is_lower_there=len(allowed) < len(found))


def needed_bytes(weights: Weights, *, parameters: int | None, kv_bytes_per_token: int | None) -> int:
    """Weights, a context of 8,192 tokens, and what an engine takes for itself."""
    if kv_bytes_per_token is None:
        count = parameters or weights.size_bytes * 8 / _bits(weights.label)
        kv_bytes_per_token = int(_KV_BYTES_8B * (count / _8B) ** 0.5)
    return weights.size_bytes + kv_bytes_per_token * CONTEXT_TOKENS + _ROOM_BYTES


def _named(found: Sequence[Weights], repo: str, asked: str, allow_low_quality: bool) -> Choice:
    meant = next((each for each in found if each.is_called(asked)), None)
    if meant is None:
        names = ", ".join(each.label or each.stem for each in sorted(found, key=_rank))
        raise InvalidRequestError(f"{repo!r} has no {asked[:80]!r}; it has {names[:500]}.", param="model")
    if is_low_quality(meant.label) and not allow_low_quality:
        raise _too_low(repo, meant)
    return Choice(meant, f"{_shown(meant)}: as asked for")


def _sensible(found: Sequence[Weights]) -> list[Weights]:
    """The known quantizations; without any, full precision, then names that say something else, then the rest."""
    groups = (
        [each for each in found if _plain(each.label) in _RANKS],
        [each for each in found if each.label in _FULL],
        [each for each in found if each.label],
        list(found),
    )
    return next(group for group in groups if group)


def _best(found: Sequence[Weights], cost: Callable[[Weights], int], budget: Budget) -> Choice | None:
    """On the CPU, where all are better than its cap, the smallest."""
    for each in sorted(found, key=_rank):
        if (where := _place(each, cost(each), budget)) is not None:
            return Choice(each, f"{_shown(each)}: the best that {where}, with {CONTEXT_TOKENS} tokens of context")
    smallest = min(found, key=lambda each: each.size_bytes, default=None)
    if smallest is None or cost(smallest) > budget.ram_bytes:
        return None
    return Choice(smallest, f"{_shown(smallest)}: the smallest, and so the quickest on a CPU; it fits")


def _place(weights: Weights, cost: int, budget: Budget) -> str | None:
    if cost <= budget.gpu_bytes:
        return f"fits the GPU's free memory ({_size(budget.gpu_bytes)})"
    is_quick = _rank(weights)[0] >= _CPU_CAP or weights.size_bytes <= QUICK_ON_CPU_BYTES
    if cost > budget.ram_bytes or not is_quick:
        return None
    if budget.is_limited:
        return f"fits the limit of {_size(budget.ram_bytes)}"
    return f"fits {RAM_SHARE:.0%} of this machine's memory ({_size(budget.ram_bytes)}) and is quick enough on its CPU"


def _rank(weights: Weights) -> tuple[int, int]:
    plain = _plain(weights.label)
    if plain in _RANKS:
        return _RANKS[plain], weights.size_bytes
    return len(_RANKS) + (_FULL.index(plain) if plain in _FULL else len(_FULL)), weights.size_bytes


def _plain(label: str) -> str:
    return label.removeprefix("UD-")


def _bits(label: str) -> float:
    plain = _plain(label).removeprefix("I").removeprefix("B")
    return next((bits for start, bits in _BITS_PER_WEIGHT.items() if plain.startswith(start)), 4.8)


def _too_low(repo: str, weights: Weights) -> InvalidRequestError:
    return InvalidRequestError(
        f"{weights.label} of {repo!r} loses much of the model: choose one of three bits or more, or allow it with "
        "--allow-low-quality (allow_low_quality=True).",
        param="model",
    )


def _too_large(
    repo: str, smallest: Weights, needed: int, budget: Budget, *, is_lower_there: bool
) -> InsufficientMemoryError:
    lower = "; --allow-low-quality would let smaller ones be taken" if is_lower_there else ""
    name = smallest.label or smallest.stem
    available = max(budget.gpu_bytes, budget.ram_bytes)
    return InsufficientMemoryError(
        f"The smallest of {repo!r}, {name}, needs {_size(needed)} with {CONTEXT_TOKENS} tokens of context, and "
        f"{_size(available)} can be used: take a smaller model, or name this one to have it all the same "
        f"({repo}:{name}){lower}.",
        needed_bytes=needed,
        available_bytes=available,
    )


def _shown(weights: Weights) -> str:
    return f"{weights.label or weights.stem} ({_size(weights.size_bytes)})"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
