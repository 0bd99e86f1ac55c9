// OpenAI's JavaScript library: uses the server at argv[2], prints what the library made of it.

import { createReadStream, readFileSync } from "node:fs";
import OpenAI, { toFile } from "openai";
import { whileFull } from "./queue.mjs";

const [server, maskFile, limit] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${server}/v1`, apiKey: "any" });
const seen = { version: JSON.parse(readFileSync("node_modules/openai/package.json")).version };

seen.models = (await client.models.list()).data.map((model) => model.id);

let answer = await client.images.generate({
  model: "gpt-image-1", prompt: "a red apple", n: 2, size: "256x256", seed: 3, num_inference_steps: 4,
});
seen.generation = [answer.size, answer.quality, answer.data.map((one) => one.seed), answer.usage.total_tokens];
const apple = await toFile(Buffer.from(answer.data[0].b64_json, "base64"), "apple.png", { type: "image/png" });

// the mask as a stream of a file, which the library sends without a Content-Length
const edit = { image: [apple], prompt: "an apple on blue", output_format: "jpeg", num_inference_steps: 4 };
answer = await client.images.edit({ ...edit, mask: createReadStream(maskFile) });
const head = Buffer.from(answer.data[0].b64_json, "base64").subarray(0, 3).toString("hex");
seen.edit = [answer.size, answer.output_format, head, answer.warnings];

const streamed = { model: "gpt-image-1", stream: true, partial_images: 3, num_inference_steps: 20 };
const shown = async (stream) => {
  const events = [];
  for await (const event of stream) events.push([event.type, event.b64_json.length > 100]);
  return events;
};
seen.events = await shown(await client.images.generate({ ...streamed, prompt: "a house" }));
seen.editEvents = await shown(await client.images.edit({ ...streamed, image: apple, prompt: "a house", strength: 1 }));

const raised = (error) => [error.constructor.name, error.param, error.code, Boolean(error.requestID)];
seen.errors = [];
for (const wrong of [{ n: 9 }, { model: "none/such" }, { background: "transparent" }, { n: 9, stream: true }]) {
  await client.images.generate({ model: "gpt-image-1", prompt: "x", ...wrong }).catch((error) => seen.errors.push(raised(error)));
}

const impatient = client.withOptions({ maxRetries: 0 });
seen.full = await whileFull(server, Number(limit), () =>
  impatient.images.generate({ prompt: "x" }).catch((error) => [error.status, ...raised(error)]),
);
console.log(JSON.stringify(seen));
