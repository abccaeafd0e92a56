// The official client for JavaScript, unchanged: what came back is printed as JSON, for a test to judge.
import { Ollama } from "ollama";

const [host, model, embedder] = process.argv.slice(2);
const client = new Ollama({ host });
const messages = [{ role: "user", content: "What is the capital of France? Answer in one sentence." }];
const sure = { model, messages, options: { temperature: 0, num_predict: 24, seed: 1 } };
const told = {};

const whole = await client.chat(sure);
told.whole = whole.message.content;
told.done = [whole.done, whole.done_reason, whole.eval_count, whole.created_at];

told.streamed = "";
for await (const part of await client.chat({ ...sure, stream: true })) {
  told.streamed += part.message.content;
  told.streamedCount = part.eval_count;
}

const left = await client.chat({ ...sure, options: { num_predict: 500 }, stream: true });
for await (const part of left) {
  told.left = part.done;
  left.abort();
  break;
}

const generated = await client.generate({ model, prompt: "The capital of France is", raw: true, options: sure.options });
told.generated = generated.response;
told.pieces = 0;
for await (const part of await client.generate({ model, prompt: "Say hello.", stream: true, options: sure.options })) {
  told.pieces += 1;
  told.context = part.context?.length;
}

const embeddings = (await client.embed({ model: embedder, input: ["A cat.", "A dog."] })).embeddings;
told.dimensions = embeddings.map((vector) => vector.length);

told.models = (await client.list()).models.map((entry) => entry.name);
const shown = await client.show({ model });
told.shown = [shown.details.family, shown.capabilities, shown.model_info["general.architecture"]];
told.running = (await client.ps()).models.map((entry) => entry.name);
told.version = (await client.version()).version;

const format = { type: "object", properties: { city: { type: "string", maxLength: 20 } }, required: ["city"] };
told.shaped = JSON.parse((await client.chat({ ...sure, format, options: { temperature: 0, num_predict: 128 } })).message.content);

told.errors = {};
const failing = {
  chat: () => client.chat({ ...sure, model: "absent" }),
  stream: () => client.chat({ ...sure, model: "absent", stream: true }),
  embed: () => client.embed({ model: "absent", input: "x" }),
  option: () => client.chat({ ...sure, options: { num_ctx: "x" } }),
};
for (const [name, call] of Object.entries(failing)) {
  try {
    await call();
  } catch (error) {
    told.errors[name] = [error.status_code, error.error ?? error.message];
  }
}

console.log(JSON.stringify(told));
