// OpenAI's client for Node: what its users do, against a running gateway.
//
//     OPENAI_SDK=/folder/with/node_modules node node_openai.mjs BASE_URL MODEL ROUTE…
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.OPENAI_SDK}/`);
const OpenAI = require("openai").default;
const { VERSION } = require("openai/version");
const [baseURL, model, ...routes] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "k", maxRetries: 0 });
const messages = [{ role: "user", content: "Say a word." }];
const short = { temperature: 0, max_tokens: 8 };

async function chat() {
  const whole = await client.chat.completions.create({ model, messages, ...short });
  const text = whole.choices[0].message.content;
  assert(text);
  assert(whole._request_id);
  let joined = "";
  for await (const chunk of await client.chat.completions.create({ model, messages, stream: true, ...short })) {
    joined += chunk.choices[0]?.delta?.content ?? "";
  }
  assert.equal(joined, text);
  const helper = client.chat.completions.stream({ model, messages, ...short });
  assert.equal(await helper.finalContent(), text);
}

async function completions() {
  const whole = await client.completions.create({ model, prompt: "Once", ...short });
  let joined = "";
  for await (const chunk of await client.completions.create({ model, prompt: "Once", stream: true, ...short })) {
    joined += chunk.choices[0].text;
  }
  assert.equal(joined, whole.choices[0].text);
}

async function embeddings() {
  const packed = await client.embeddings.create({ model, input: ["a", "b"] });
  const floats = await client.embeddings.create({ model, input: ["a", "b"], encoding_format: "float" });
  assert.deepEqual(packed.data[1].embedding, floats.data[1].embedding);
}

async function responses() {
  const whole = await client.responses.create({ model, input: "Say a word.", temperature: 0 });
  assert(whole.output_text);
  const kinds = [];
  for await (const event of await client.responses.create({ model, input: "Say a word.", stream: true })) {
    kinds.push(event.type);
  }
  assert.equal(kinds[0], "response.created");
  assert(["response.completed", "response.incomplete"].includes(kinds.at(-1)));
  const helper = client.responses.stream({ model, input: "Say a word.", temperature: 0 });
  assert.equal((await helper.finalResponse()).output[0].content[0].text, whole.output_text);
}

async function images() {
  const answer = await client.images.generate({ model, prompt: "a frog", size: "256x256" });
  assert(Buffer.from(answer.data[0].b64_json, "base64").length);
}

// Two calls of a simulated engine, whole and by the helper that puts their pieces together.
async function tools() {
  const parameters = { type: "object" };
  const asked = {
    model, messages, tools: [{ type: "function", function: { name: "pond", parameters } }],
    simulate: { calls: ["pond", "pond"] },
  };
  const told = (choice) => choice.message.tool_calls.map((call) => [call.id, call.function.arguments]);
  const whole = await client.chat.completions.create(asked);
  assert.equal(whole.choices[0].finish_reason, "tool_calls");
  const final = await client.chat.completions.stream(asked).finalChatCompletion();
  assert.deepEqual(told(final.choices[0]), told(whole.choices[0]));
}

async function modelsAndErrors() {
  const names = [];
  for await (const each of client.models.list()) names.push(each.id);
  assert(names.includes(model));
  await assert.rejects(
    client.chat.completions.create({ model: "nobody", messages }),
    (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found" && error.param === "model",
  );
  await assert.rejects(client.files.list(), (error) => error.code === "route_not_supported");
}

const suites = { chat, completions, embeddings, responses, images, tools };
for (const route of routes) await suites[route]();
await modelsAndErrors();
console.log(VERSION);
