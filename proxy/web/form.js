// The form: the fields that a task takes, with the server's own defaults and limits, and the init image.

import { Mask } from "./mask.js";
import { showNetworks } from "./networks.js";
import { readParameters } from "./parameters.js";
import { countTokens } from "./tokens.js";

export const $ = (id) => document.getElementById(id);

const ABBREVIATED = /Scheduler$/;
const fields = [...document.querySelectorAll("#fields [name]")];
let described = []; // what GET /models says
let init = null; // the file of the init image, whose bytes are sent as they are
let touched = new Set(); // fields that the user has changed: another model's defaults leave them alone
export let task = "";

export const mask = new Mask($("mask"), $("brush"), $("cursor"), () => $("error").toggleAttribute("hidden", true));

/** Where a request is sent: the task, or another model's path for it. */
export function path() {
  const custom = $("model").value && `custom/${encodeURIComponent($("model").value)}`;
  if (!custom) return task;
  return task === "txt2img" ? custom : `${custom}/${task}`;
}

function served() {
  const custom = $("model").value;
  return described.find((one) => (custom ? one.archive === `custom-${custom}` : one.tasks.includes(task) && !one.archive.startsWith("custom-")));
}

/** Takes over what GET /models says. */
export function describe(models, available) {
  described = models;
  const chosen = $("model").value;
  $("model").replaceChildren(new Option(models[0]?.model ?? "", ""), ...available.map(modelOption));
  $("model").value = available.some((one) => one.name === chosen) ? chosen : "";
  $("model-field").hidden = !available.length;
  fill();
}

function modelOption({ name, label, state, reason }) {
  const about = { preparing: " (being prepared)", failed: " (cannot be served)" }[state] ?? "";
  return Object.assign(new Option(label + about, name), { disabled: state === "failed", title: reason });
}

function fill() {
  const model = served();
  showNetworks(model);
  countTokens($("model").value);
  const limits = model?.limits ?? described[0]?.limits;
  if (!limits) return;
  $("num_outputs").max = limits.max_num_outputs;
  $("num_inference_steps").max = limits.max_num_inference_steps;
  slider("num_inference_steps").max = Math.min(limits.max_num_inference_steps, 100);
  for (const side of ["width", "height"]) Object.assign($(side), { min: limits.min_size, max: limits.max_size });
  $("prompt").maxLength = $("negative_prompt").maxLength = limits.max_prompt_chars;
  const defaults = model?.defaults ?? {}; // another model says so once it is loaded
  for (const name of ["num_inference_steps", "guidance_scale", "width", "height"]) {
    if (!touched.has(name)) set(name, defaults[name] ?? "");
  }
  const scheduler = touched.has("scheduler") ? $("scheduler").value : "";
  const own = defaults.scheduler?.replace(ABBREVIATED, "");
  $("scheduler").replaceChildren(
    new Option(own ? `the model's own (${own})` : "the model's own", ""),
    ...(model?.samplers ?? []).map((name) => new Option(name, name)),
    ...(model?.schedulers ?? []).map((name) => new Option(name.replace(ABBREVIATED, ""), name)),
  );
  setScheduler(scheduler);
  showEta();
}

/** Selects a scheduler, also one with a schedule behind its name. Returns whether the model has it. */
function setScheduler(name) {
  const select = $("scheduler");
  const known = [...select.options].some((option) => option.value === name);
  const named = (served()?.samplers ?? []).some((sampler) => name.startsWith(`${sampler} `));
  if (!known && named) select.add(new Option(name, name));
  select.value = known || named ? name : "";
  return known || named;
}

function slider(name) {
  return document.querySelector(`[data-for=${name}]`);
}

function set(name, value) {
  $(name).value = value;
  if (slider(name)) slider(name).value = value;
}

function showEta() {
  const name = $("scheduler").value || served()?.defaults.scheduler || "";
  $("eta-field").hidden = !name.startsWith("DDIM");
}

function showQuality() {
  $("quality-field").hidden = $("output_format").value === "png";
}

/** Chooses a tab. */
export function choose(wanted) {
  task = wanted;
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const chosen = tab.dataset.task === task;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    if (chosen) $("fields").setAttribute("aria-labelledby", tab.id);
  }
  $("source").hidden = task === "txt2img";
  $("size").hidden = task !== "txt2img";
  $("mask").hidden = task !== "masking";
  $("mask-settings").hidden = task !== "masking";
  $("brushes").hidden = task !== "masking" || !init;
  if (task !== "masking") mask.fit();
  clearError();
  fill();
}

/** Takes `blob` as the init image. Throws if it is no image. */
export async function start(blob) {
  const image = Object.assign(new Image(), { src: URL.createObjectURL(blob) });
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(image.src);
    throw new Error("This file cannot be read as an image: save it as PNG, JPEG or WebP, and choose that.");
  }
  init = blob;
  URL.revokeObjectURL($("init").src);
  $("init").src = image.src;
  mask.reset(image.naturalWidth, image.naturalHeight);
  $("easel").hidden = $("about-init").hidden = false;
  $("drop").hidden = true;
  $("note").textContent = "";
  choose(task === "txt2img" ? "img2img" : task);
}

/** Back to the field where an image is chosen. */
export function another() {
  init = null;
  $("easel").hidden = $("about-init").hidden = true;
  $("drop").hidden = false;
  $("note").textContent = $("file").value = "";
  choose(task);
  $("file").focus();
}

/** The form's fields as the server takes them. Throws a sentence if something is missing. */
export async function collect() {
  const form = new FormData();
  for (const field of fields) {
    const unused = field.closest("[hidden]") || (field.type === "checkbox" && !field.checked);
    // an empty prompt is one, too
    if (!unused && (field.value.trim() || field.name === "prompt")) form.append(field.name, field.value);
  }
  if (task !== "txt2img") {
    if (!init) throw new Error("Choose an init image.");
    form.append("init_image", init, "init_image");
  }
  // without a mask, the server fills the image's holes, or says that there are none
  if (task === "masking" && !mask.empty) form.append("mask_image", await mask.blob(), "mask_image.png");
  return form;
}

/** The texts of a form, for the history. */
export function texts(form) {
  return Object.fromEntries([...form].filter(([, value]) => typeof value === "string"));
}

/** Restores the fields of an earlier request. */
export function restore(earlier) {
  touched = new Set(Object.keys(earlier.fields));
  const [, model = "", customTask = "txt2img"] = earlier.task.match(/^custom\/([^/]+)\/?(\w+)?/) ?? [];
  $("model").value = decodeURIComponent(model);
  choose(model ? customTask : earlier.task);
  for (const field of fields) {
    if (field.type !== "checkbox") set(field.id, earlier.fields[field.name] ?? initial(field));
  }
  countTokens($("model").value);
  setScheduler(earlier.fields.scheduler ?? "");
  touched = new Set(Object.keys(earlier.fields).filter((name) => name !== "prompt"));
  set("seed", earlier.seed);
  set("num_outputs", 1);
  showEta();
  showQuality();
}

/** What a field has when the page is loaded. */
function initial(field) {
  return field.defaultValue ?? field.options[0].value;
}

/** Takes over the prompt and the settings that are stored in the init image's file. Shows what became of it. */
export async function reuseFile() {
  const found = await readParameters(init);
  if (!found) {
    $("note").textContent = "This file has no settings in it: it was not generated, or it was saved without them.";
    return;
  }
  // a masked photograph may be larger than what is generated from text
  if (["width", "height"].some((side) => Number(found[side]) > Number($(side).max))) {
    delete found.width;
    delete found.height;
  }
  const { scheduler, ...values } = found;
  for (const [name, value] of Object.entries(values)) set(name, value);
  countTokens($("model").value);
  const known = setScheduler(scheduler ?? "");
  for (const name of Object.keys(found)) touched.add(name);
  showEta();
  $("note").textContent = known
    ? "The file's settings are in the form."
    : `The file's settings are in the form, but not its scheduler ${scheduler}, which this model does not have.`;
}

/** Uses this seed for the next request. */
export function keepSeed(seed) {
  set("seed", seed);
  set("num_outputs", 1);
}

/** Shows an error, at the field that the server's sentence begins with. */
export function showError(message) {
  clearError();
  $("error").textContent = message;
  $("error").hidden = false;
  const field = fields.find((one) => one.name === message.split(" ")[0]);
  if (!field) return;
  field.setAttribute("aria-invalid", "true");
  explain(field, "error");
  field.closest("details")?.setAttribute("open", "");
  field.focus();
}

export function clearError() {
  $("error").hidden = true;
  for (const field of fields) {
    field.removeAttribute("aria-invalid");
    explain(field);
  }
}

/** Names the elements that explain a field: these, and its hint. */
function explain(field, ...ids) {
  if ($(`${field.id}-hint`)) ids.push(`${field.id}-hint`);
  if (ids.length) field.setAttribute("aria-describedby", ids.join(" "));
  else field.removeAttribute("aria-describedby");
}

for (const field of fields) {
  field.addEventListener("input", () => {
    touched.add(field.name);
    field.removeAttribute("aria-invalid");
    if (slider(field.id)) slider(field.id).value = field.value;
  });
  slider(field.id)?.addEventListener("input", (event) => {
    touched.add(field.name);
    field.value = event.target.value;
  });
}
$("scheduler").addEventListener("change", showEta);
$("output_format").addEventListener("change", showQuality);
$("model").addEventListener("change", fill);
$("prompt").addEventListener("input", () => countTokens($("model").value));
