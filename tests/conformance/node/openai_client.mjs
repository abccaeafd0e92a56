// The official client for JavaScript, unchanged: what came back is printed as JSON, for a test to judge.
import OpenAI from "openai";

const [baseURL, model, embedder] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0, timeout: 60_000 });
const messages = [{ role: "user", content: "What is the capital of France? Answer in one sentence." }];
const sure = { model, messages, temperature: 0, max_tokens: 24, seed: 1 };
const told = {};

const whole = await client.chat.completions.create(sure);
told.whole = whole.choices[0].message.content;
told.usage = whole.usage;

const stream = await client.chat.completions.create({ ...sure, stream: true, stream_options: { include_usage: true } });
told.streamed = "";
for await (const chunk of stream) {
  told.streamed += chunk.choices[0]?.delta?.content ?? "";
  told.streamedUsage = chunk.usage;
}

const { data, response } = await client.chat.completions.create(sure).withResponse();
told.driver = response.headers.get("x-oprel-driver");
told.id = data.id;

const left = await client.chat.completions.create({ ...sure, max_tokens: 500, stream: true });
for await (const chunk of left) {
  told.left = chunk.id;
  break;
}

told.completion = (await client.completions.create({ model, prompt: "The capital of France is", temperature: 0, max_tokens: 8 })).choices[0].text;

const embeddings = await client.embeddings.create({ model: embedder, input: ["A cat.", "A dog."] });
told.dimensions = embeddings.data.map((item) => item.embedding.length);

told.models = [];
for await (const entry of client.models.list()) told.models.push(entry.id);
told.retrieved = (await client.models.retrieve(model)).id;

const shaped = await client.chat.completions.create({
  model,
  messages: [{ role: "user", content: "Describe Paris as JSON with name and country." }],
  temperature: 0,
  max_tokens: 100,
  response_format: {
    type: "json_schema",
    json_schema: {
      name: "city",
      schema: { type: "object", properties: { name: { type: "string", maxLength: 30 } }, required: ["name"], additionalProperties: false },
    },
  },
});
told.shaped = JSON.parse(shaped.choices[0].message.content);

told.errors = {};
for (const [name, fields] of Object.entries({ missing: { model: "nope" }, range: { temperature: 3 } })) {
  try {
    await client.chat.completions.create({ ...sure, ...fields });
  } catch (error) {
    told.errors[name] = [error.constructor.name, error.status, error.code, error.param];
  }
}

console.log(JSON.stringify(told));
