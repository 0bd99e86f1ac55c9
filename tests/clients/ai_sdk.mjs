// The Vercel AI SDK, by both of its providers: uses the server at argv[2], prints what the SDK made of it.

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { experimental_generateImage as generateImage } from "ai";
import { whileFull } from "./queue.mjs";

const [server, limit] = [process.argv[2], Number(process.argv[4])];
const options = { baseURL: `${server}/v1`, apiKey: "any" };
const providers = {
  openai: createOpenAI(options).image("dall-e-3"),
  compatible: createOpenAICompatible({ name: "sd", ...options }).imageModel("embedded"),
};

const raised = (error) => [error.statusCode, error.message, error.isRetryable];
const seen = {};
for (const [name, model] of Object.entries(providers)) {
  const asked = { model, prompt: "a red apple", size: "128x128", providerOptions: { sd: { steps: 4 }, openai: { steps: 4 } } };
  const { images } = await generateImage({ ...asked, n: 2 });
  const refused = await generateImage({ ...asked, size: "9x9" }).catch(raised);
  const full = await whileFull(server, limit, () => generateImage({ ...asked, maxRetries: 0 }).catch(raised));
  seen[name] = { images: images.map((image) => [image.mediaType, image.uint8Array.length > 1000]), refused, full };
}
console.log(JSON.stringify(seen));
