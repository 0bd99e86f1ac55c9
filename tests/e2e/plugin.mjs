// What the Photoshop plugin does, with fetch: node plugin.mjs ADDRESS INIT_IMAGE MASK_IMAGE (both base64).
// Prints one JSON object with what came of it.

const [address, init_image, mask_image] = process.argv.slice(2);
const said = {};

/** A form as the plugin sends it; it looks at `status` in the answer, not at the HTTP status. */
async function post(path, fields) {
  const response = await fetch(`${address}/${path}`, {
    method: "POST",
    headers: { "Content-Type": "application/x-www-form-urlencoded;charset=UTF-8" },
    body: Object.entries(fields).map(([name, value]) => `${encodeURIComponent(name)}=${encodeURIComponent(value)}`).join("&"),
  });
  return { http: response.status, ...(await response.json()) };
}

said.ping = await (await fetch(`${address}/ping`)).json();
said.custom_models = await (await fetch(`${address}/custom_models`)).json();

const common = { prompt: "a red apple", seed: 0, num_outputs: 1, num_inference_steps: 4, guidance_scale: 7.5, eta: 0 };
const generated = await post("txt2img", { ...common, width: 128, height: 128, num_outputs: 2 });
said.txt2img = { http: generated.http, status: generated.status, types: generated.images.map((image) => image.mime_type) };
// the seed is a JavaScript number by now; the second image's brings it back alone
const second = generated.images[1];
const again = await post("txt2img", { ...common, width: 128, height: 128, seed: second.seed });
said.seed = { sent: second.seed, back: again.images[0].seed, safe: Number.isSafeInteger(second.seed) };
const largest = await post("txt2img", { ...common, width: 128, height: 128, seed: Number.MAX_SAFE_INTEGER });
said.largest = largest.images[0].seed === Number.MAX_SAFE_INTEGER;
said.same = [second.base64, again.images[0].base64];

const layer = { ...common, init_image, strength: 0.6 };
const img2img = await post("img2img", layer);
said.img2img = { status: img2img.status, base64: img2img.images[0].base64 };
const masking = await post("masking", { ...layer, mask_image, strength: 1 });
said.masking = { status: masking.status, base64: masking.images[0].base64 };

said.failures = [
  await post("txt2img", { ...common, width: 77, height: 128 }),
  await post("img2img", { ...common, strength: 0.6, init_image: "rubbish!" }),
  await post("custom/none", common),
];
console.log(JSON.stringify(said));
