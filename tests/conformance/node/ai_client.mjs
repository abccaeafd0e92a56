// Vercel's AI SDK, unchanged, with its providers for OpenAI's APIs and Anthropic's: what came back is printed as JSON,
// for a test to judge.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, embedMany, generateText, streamText, tool } from "ai";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false;
const [url, model, embedder] = process.argv.slice(2);
const baseURL = `${url}/v1`;
const compatible = createOpenAICompatible({ name: "oprel", baseURL, includeUsage: true, supportsStructuredOutputs: true });
const openai = createOpenAI({ baseURL, apiKey: "unused" });
const anthropic = createAnthropic({ baseURL, apiKey: "unused" });
const models = {
  compatible: compatible(model),
  chat: openai.chat(model),
  responses: openai(model), // what it takes where nothing else is said
  anthropic: anthropic(model),
};

const sure = { prompt: "What is the capital of France? Answer in one sentence.", temperature: 0, maxOutputTokens: 12, maxRetries: 0 };
const weather = tool({ description: "The weather of a city.", inputSchema: z.object({ city: z.enum(["Rome", "Oslo"]) }) });
const certain = { ...sure, tools: { weather }, toolChoice: { type: "tool", toolName: "weather" }, maxOutputTokens: 64 };
const shaped = { ...sure, output: Output.object({ schema: z.object({ name: z.enum(["Rome", "Oslo"]) }) }), maxOutputTokens: 48 };

const results = {};
const errors = {};
async function run(name, call) {
  try {
    results[name] = await call();
  } catch (error) {
    errors[name] = [error.name, error.statusCode ?? null, error.message];
  }
}

const shown = ({ text, finishReason, usage, toolCalls }) => ({
  text,
  reason: finishReason,
  tokens: [usage.inputTokens, usage.outputTokens],
  calls: toolCalls.map((call) => [call.toolName, call.input]),
});

async function streamed(asked) {
  let failure;
  const result = streamText({ ...asked, onError: ({ error }) => (failure = error) });
  const kinds = {};
  for await (const part of result.fullStream) kinds[part.type] = (kinds[part.type] ?? 0) + 1;
  if (failure) throw failure;
  const [text, finishReason, usage, toolCalls] = await Promise.all([result.text, result.finishReason, result.usage, result.toolCalls]);
  return { ...shown({ text, finishReason, usage, toolCalls }), kinds };
}

async function parts(asked) {
  const result = streamText(asked);
  const seen = [];
  for await (const part of result.partialOutputStream) seen.push(part);
  return seen;
}

for (const [name, chosen] of Object.entries(models)) {
  await run(`${name}: whole`, async () => shown(await generateText({ ...sure, model: chosen })));
  await run(`${name}: streamed`, () => streamed({ ...sure, model: chosen }));
  await run(`${name}: a tool`, async () => shown(await generateText({ ...certain, model: chosen })));
  await run(`${name}: a tool, streamed`, () => streamed({ ...certain, model: chosen }));
}
for (const name of ["compatible", "responses", "anthropic"]) {
  await run(`${name}: a schema`, async () => (await generateText({ ...shaped, model: models[name] })).output);
}
await run("compatible: a schema, streamed", () => parts({ ...shaped, model: models.compatible }));
for (const [name, make] of Object.entries({ compatible, responses: openai, anthropic })) {
  await run(`${name}: absent`, () => generateText({ ...sure, model: make("absent") }));
  await run(`${name}: absent, streamed`, () => streamed({ ...sure, model: make("absent") }));
}
await run("compatible: embeddings", async () => {
  const { embeddings, usage } = await embedMany({ model: compatible.embeddingModel(embedder), values: ["A cat.", "A dog."] });
  return [embeddings.map((vector) => vector.length), usage.tokens];
});
await run("openai: embeddings", async () => {
  const { embeddings } = await embedMany({ model: openai.embedding(embedder), values: ["A cat.", "A dog."] });
  return embeddings.map((vector) => vector.length);
});

console.log(JSON.stringify({ results, errors }));
