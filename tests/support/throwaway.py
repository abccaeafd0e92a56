"""Distributions to throw away: what pip would leave of a package with a driver in it, on a path of its own."""

from __future__ import annotations

from pathlib import Path

__all__ = ["DRIVER", "make_package"]

# A driver that keeps the contract, as source, to be broken in one place by what is put after it.
DRIVER = """
import asyncio
from oprel.drivers import Driver, Engine, EngineFailedError, Health
from oprel.schema import ALL_SAMPLING, Availability, Capabilities, Embeddings, Finish, Plan, Support, Text, Usage

class E(Engine):
    def __init__(self, plan):
        self.plan = plan
        self.capabilities = Capabilities(
            chat=True, complete=True, embed=True, sampling=ALL_SAMPLING, context_tokens=plan.context_tokens
        )
        self.dead = asyncio.get_running_loop().create_future()
    async def answer(self):
        yield (Text("Hello"),)
        await asyncio.sleep(0)
        if self.dead.done():
            raise EngineFailedError("it ended", driver="odd")
        yield (Text(" there"), Finish(("stop",), Usage(3, 2)))
    def chat(self, request): return self.answer()
    def complete(self, request): return self.answer()
    async def embed(self, request):
        return Embeddings(tuple((0.6, 0.8) for _ in request.inputs), len(request.inputs))
    async def health(self): return Health("dead" if self.dead.done() else "ready")
    async def wait_dead(self): return await asyncio.shield(self.dead)
    async def stop(self):
        if not self.dead.done(): self.dead.set_result("stopped")

class D(Driver):
    name = "odd"
    engine = E
    can = Capabilities(chat=True, complete=True, embed=True, sampling=ALL_SAMPLING)
    def availability(self, hardware): return Availability(True, "needs nothing")
    def supports(self, model): return Support(model.format == "gguf", "it runs all GGUF files")
    def plan(self, model, options, hardware):
        return Plan(
            driver="odd", engine="odd", model=model.name, model_digest=model.digest, files=model.files,
            options=options, gpu_layers=0, layers=None, bytes_by_device=(("cpu", 1000),),
            context_tokens=options.context_tokens or 512, slots=2, threads=1, argv=(), chat=True,
            reasons=(("context", "as asked"),),
        )
    async def start(self, plan): return self.engine(plan)
"""


def make_package(site: Path, name: str, source: str, *, package: str = "", target: str = "") -> Path:
    """A package with one driver in `site`, which goes on sys.path (or PYTHONPATH)."""
    package = package or f"oprel-test-{name.replace('_', '-')}"
    module = package.replace("-", "_")
    info = site / f"{module}-2.1.dist-info"
    info.mkdir(parents=True)
    (site / f"{module}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text(f"[oprel.drivers]\n{name} = {target or f'{module}:D'}\n")
    return site
