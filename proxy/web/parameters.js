// What an image was generated with: the text that AUTOMATIC1111's web UI, and this server, write into PNG, JPEG and WebP.

const SAMPLERS = { // diffusers' schedulers by the web UI's names
  DDIM: "DDIMScheduler",
  "DPM++ 2M": "DPMSolverMultistepScheduler",
  DPM2: "KDPM2DiscreteScheduler",
  "DPM2 a": "KDPM2AncestralDiscreteScheduler",
  Euler: "EulerDiscreteScheduler",
  "Euler a": "EulerAncestralDiscreteScheduler",
  Heun: "HeunDiscreteScheduler",
  LCM: "LCMScheduler",
  LMS: "LMSDiscreteScheduler",
  PLMS: "PNDMScheduler",
  UniPC: "UniPCMultistepScheduler",
};
const PAIR = /\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)/g; // as the web UI reads its last line
const NUMBERS = {
  Steps: "num_inference_steps",
  "CFG scale": "guidance_scale",
  Seed: "seed",
  "Denoising strength": "strength",
  "Mask blur": "mask_blur",
};

/** The form's fields that an image file names; null if it has no such text. */
export async function readParameters(blob) {
  let text;
  try {
    text = find(new DataView(await blob.arrayBuffer()));
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    text = null; // the file ends early
  }
  return text ? parse(text) : null;
}

/** The form's fields in the text: the prompt, "Negative prompt: …", and a last line of pairs such as "Steps: 20". */
function parse(text) {
  const lines = text.trim().split("\n");
  const pairs = new Map([...lines.at(-1).matchAll(PAIR)].map(([, name, value]) => [name, value.trim()]));
  if (pairs.size < 3) pairs.clear(); // it belongs to the prompt
  else lines.pop();
  const [prompt, negative] = lines.join("\n").split(/^Negative prompt: ?/m);
  const found = { prompt: prompt.trim(), negative_prompt: (negative ?? "").trim().replaceAll("\n", " ") };
  for (const [name, field] of Object.entries(NUMBERS)) {
    if (/^\d+(\.\d+)?$/.test(pairs.get(name))) found[field] = pairs.get(name);
  }
  const skipped = Number(pairs.get("Clip skip")) - 1; // the last layer is the web UI's 1
  if (skipped > 0) found.clip_skip = String(skipped);
  const size = pairs.get("Size")?.match(/^(\d+)x(\d+)$/);
  if (size) [, found.width, found.height] = size;
  // older versions write the schedule into the name
  const sampler = pairs.get("Sampler")?.replace(/ (Karras|Exponential|SGM Uniform)$/, "");
  const schedule = pairs.get("Schedule type") ?? pairs.get("Sampler")?.slice(sampler.length + 1);
  // without a schedule the scheduler is as the model has it
  if (sampler) found.scheduler = !schedule ? SAMPLERS[sampler] ?? sampler
    : schedule === "Automatic" ? sampler : `${sampler} ${schedule}`;
  return found;
}

function find(data) {
  if (data.getUint32(0) === 0x89504e47) return inPng(data);
  if (data.getUint16(0) === 0xffd8) return inJpeg(data);
  if (name(data, 0) === "RIFF" && name(data, 8) === "WEBP") return inWebp(data);
  return null;
}

/** In the chunk tEXt (Latin-1) or iTXt (UTF-8) with the keyword `parameters`. */
function inPng(data) {
  for (let at = 8; at < data.byteLength; at += 12 + data.getUint32(at)) {
    const kind = name(data, at + 4);
    if (kind !== "tEXt" && kind !== "iTXt") continue;
    const content = bytes(data, at + 8, data.getUint32(at));
    const [keyword] = decoded(content, "latin1").split("\0", 1);
    if (keyword !== "parameters") continue;
    const rest = content.subarray(keyword.length + 1);
    if (kind === "tEXt") return decoded(rest, "latin1");
    // two bytes for the compression, which nobody uses here; the language and the translated keyword end with a zero
    if (!rest[0]) return decoded(rest.subarray(rest.indexOf(0, rest.indexOf(0, 2) + 1) + 1), "utf-8");
  }
  return null;
}

function inJpeg(data) {
  for (let at = 2; data.getUint8(at) === 0xff && data.getUint8(at + 1) !== 0xda; at += 2 + data.getUint16(at + 2)) {
    if (data.getUint8(at + 1) === 0xe1 && name(data, at + 4) === "Exif") return inExif(data, at + 10);
  }
  return null;
}

function inWebp(data) {
  for (let at = 12, size; at < data.byteLength; at += 8 + size + (size % 2)) {
    size = data.getUint32(at + 4, true);
    // some writers begin as in a JPEG
    if (name(data, at) === "EXIF") return inExif(data, at + (name(data, at + 8) === "Exif" ? 14 : 8));
  }
  return null;
}

/** The UserComment of EXIF, which begins at `start`. */
function inExif(data, start) {
  const little = data.getUint16(start) === 0x4949;
  const entry = (folder, wanted) => {
    const count = data.getUint16(folder, little);
    for (let at = folder + 2; at < folder + 2 + 12 * count; at += 12) if (data.getUint16(at, little) === wanted) return at;
    return 0;
  };
  const pointer = entry(start + data.getUint32(start + 4, little), 0x8769);
  const comment = pointer && entry(start + data.getUint32(pointer + 8, little), 0x9286);
  if (!comment) return null;
  const content = bytes(data, start + data.getUint32(comment + 8, little), data.getUint32(comment + 4, little));
  const text = content.subarray(8);
  if (decoded(content.subarray(0, 8), "latin1") !== "UNICODE\0") return decoded(text, "utf-8").replace(/\0+$/, "");
  // the web UI writes it big-endian, some others as the rest of the file
  const big = decoded(text, "utf-16be");
  return big.includes("Steps: ") ? big : decoded(text, "utf-16le");
}

function bytes(data, start, length) {
  return new Uint8Array(data.buffer, start, length);
}

function name(data, at) {
  return decoded(bytes(data, at, 4), "latin1");
}

function decoded(content, encoding) {
  return new TextDecoder(encoding).decode(content);
}
