// node-sd-webui: uses the server at argv[2], prints what the library made of it.

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

// it has modules of both kinds and says of neither which it is, so Node reads all as the older one
const { default: sdwebui } = createRequire(import.meta.url)("node-sd-webui");
const client = sdwebui({ apiUrl: process.argv[2] });
const seen = { version: JSON.parse(readFileSync("node_modules/node-sd-webui/package.json")).version };

const fields = { prompt: "a red apple", negativePrompt: "blurred", seed: 3, steps: 4, width: 256, height: 256, samplingMethod: "Euler a" };
let answer = await client.txt2img({ ...fields, batchSize: 2 });
const [apple] = answer.images;
seen.txt2img = [answer.images.length, JSON.parse(answer.info).all_seeds];
seen.pngInfo = await client.pngInfo({ imageData: apple });

answer = await client.img2img({ ...fields, imageData: [apple], batchCount: 2 });
seen.img2img = [answer.images.length, JSON.parse(answer.info).all_seeds];

seen.error = await client.txt2img({ ...fields, batchSize: 9 }).catch((error) => error.message);
console.log(JSON.stringify(seen));
