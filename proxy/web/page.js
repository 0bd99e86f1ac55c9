// The page: starts jobs, shows their progress and their images, and stores those.

import * as form from "./form.js";
import { $ } from "./form.js";
import * as history from "./history.js";
import * as jobs from "./jobs.js";
import { watch } from "./others.js";
import { Failure, curl, get, key, withoutKey } from "./server.js";

const RETRY_MS = 2000;
let running = null; // the job on the stage: {id, path, fields}; without an id until the server has it
let shown = null; // the image on the stage: {blob, url, seed, nsfw, warnings, task, fields}

// --- the server ---

async function connect() {
  try {
    const { models, available } = await get("models");
    form.describe(models, available);
    form.choose(form.task);
    const [first] = models;
    const name = first.model.split(/[\\/]/).at(-1);
    $("state").textContent = `${name} on ${first.device}`;
    $("key-button").hidden = !key.get();
  } catch (error) {
    if (error.status === 401) {
      askForKey(error);
      return;
    }
    $("state").textContent = error instanceof Failure ? error.message : "The server cannot be reached.";
    setTimeout(connect, RETRY_MS);
  }
}

function askForKey(error) {
  const refused = error instanceof Failure && (withoutKey || key.get());
  $("key-heading").textContent = refused ? "The server refused this key" : "This server requires a key";
  $("key-forget").hidden = !key.get();
  $("state").textContent = "This server requires a key.";
  $("key-button").hidden = false;
  $("key").value = "";
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

// --- generating ---

async function run() {
  if (running) return;
  running = {};
  form.clearError();
  await stage(async () => {
    const path = form.path();
    const sent = await form.collect();
    begin();
    running = await jobs.start(path, sent, form.texts(sent));
  });
}

/** Shows a job on the stage until it has ended; `start` sets `running`. */
async function stage(start) {
  try {
    await start();
    let job = { status: "queued" };
    while (!jobs.hasEnded(job)) {
      job = await jobs.show(running);
      await progress(job);
    }
    const mine = jobs.take(running);
    if (job.status !== "cancelled") await results(await jobs.images(running, job), mine);
    await connectedModels(running.path);
  } catch (error) {
    if (error.status === 401) askForKey(error);
    else form.showError(error instanceof TypeError ? "The server cannot be reached: is it running?" : error.message);
    // one that the server does not know any more; one that it could not be asked about stays among the others
    if (jobs.isGone(error)) jobs.take(running);
  } finally {
    running = null;
    $("progress").hidden = $("preview-image").hidden = true;
    $("generate").disabled = false;
    if (shown) $("image-button").hidden = $("about").hidden = false;
    else $("empty").hidden = false;
  }
}

function begin() {
  $("generate").disabled = true;
  $("progress").hidden = false;
  $("about").hidden = true;
  $("bar").removeAttribute("value");
  $("steps").textContent = "Queued …";
  $("cancel").focus({ preventScroll: true });
  if (matchMedia("(max-width: 52rem)").matches) $("stage").scrollIntoView({ block: "start" });
}

async function progress(job) {
  if (jobs.hasEnded(job)) return;
  $("steps").textContent = jobs.told(job);
  if (job.steps) Object.assign($("bar"), { max: job.steps, value: job.step });
  const preview = await jobs.preview(job);
  if (!preview) return;
  URL.revokeObjectURL($("preview-image").src);
  $("preview-image").src = URL.createObjectURL(preview);
  $("preview-image").hidden = false;
  $("image-button").hidden = $("empty").hidden = true;
}

/** Shows images, and stores them if they are this tab's to store. */
async function results(images, mine) {
  if (mine) for (const image of images) await history.keep(image).catch(() => {});
  list($("results"), images.length > 1 ? images : []);
  show(images[0]);
  await showHistory();
}

function cancel() {
  if (running?.id) jobs.cancel(running).catch((error) => form.showError(error.message));
}

/** Another model's defaults are known once it is loaded. */
async function connectedModels(path) {
  if (path.startsWith("custom/")) await connect();
}

// --- images ---

function show(image) {
  if (shown) URL.revokeObjectURL(shown.url);
  shown = { ...image, url: URL.createObjectURL(image.blob) };
  const prompt = image.fields.prompt;
  $("image").src = shown.url;
  $("image").alt = prompt ? `Image: ${prompt}` : "Image without a prompt";
  $("image-button").hidden = $("about").hidden = false;
  $("empty").hidden = true;
  $("caption").textContent = prompt;
  $("result-seed").textContent = image.seed;
  $("nsfw").hidden = !image.nsfw;
  $("warnings").replaceChildren(...(image.warnings ?? []).map((warning) => Object.assign(document.createElement("li"), { textContent: warning })));
  $("download").href = shown.url;
  $("download").download = `${(prompt || "image").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60)}-${image.seed}.${image.blob.type.split("/")[1]}`;
  for (const button of document.querySelectorAll("li button")) {
    button.setAttribute("aria-current", button.image.seed === image.seed && button.image.time === image.time);
  }
}

function list(element, images) {
  for (const old of element.querySelectorAll("img")) URL.revokeObjectURL(old.src);
  element.replaceChildren(
    ...images.map((image) => {
      const button = Object.assign(document.createElement("button"), { type: "button", image });
      const thumbnail = Object.assign(document.createElement("img"), {
        src: URL.createObjectURL(image.blob), loading: "lazy", alt: `${image.fields.prompt || "image"}, seed ${image.seed}`,
      });
      button.append(thumbnail);
      button.addEventListener("click", () => {
        show(image);
        if (element.id === "history") $("stage").scrollIntoView({ block: "nearest" });
      });
      const item = document.createElement("li");
      item.append(button);
      return item;
    }),
  );
}

async function showHistory() {
  const images = await history.kept().catch(() => []);
  list($("history"), images);
  $("earlier").hidden = !images.length;
}

async function startFrom(blob) {
  try {
    await form.start(blob);
    $("form").scrollIntoView({ block: "nearest" });
  } catch (error) {
    form.showError(error.message);
  }
}

async function showCurl() {
  try {
    const sent = await form.collect();
    if (shown && !sent.has("seed")) sent.set("seed", shown.seed); // so that it generates the image on the stage again
    $("curl-text").value = curl(form.path(), sent);
  } catch (error) {
    form.showError(error.message);
    return;
  }
  $("curl-note").textContent = "";
  $("curl-dialog").showModal();
  $("curl-text").select();
  try {
    await navigator.clipboard.writeText($("curl-text").value);
    $("curl-note").textContent = "Copied.";
  } catch {
    $("curl-note").textContent = "Copy it from here: browsers block copying on plain-http pages.";
  }
}

// --- what the user does ---

function imageIn(transfer) {
  const files = [...(transfer?.files ?? [])];
  // browsers know no type for HEIC and PSD: the form says what to do with them
  return files.find((file) => file.type.startsWith("image/")) ?? files[0];
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "Enter") run();
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) cancel();
});
$("cancel").addEventListener("click", cancel);

const tabs = [...document.querySelectorAll("[role=tab]")];
for (const [index, tab] of tabs.entries()) {
  tab.addEventListener("click", () => form.choose(tab.dataset.task));
  tab.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    const next = tabs[(index + move + tabs.length) % tabs.length];
    form.choose(next.dataset.task);
    next.focus();
  });
}

$("file").addEventListener("change", () => $("file").files.length && startFrom($("file").files[0]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", () => document.body.classList.remove("dragging"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const file = imageIn(event.dataTransfer);
  if (file) startFrom(file);
});
document.addEventListener("paste", (event) => {
  const file = imageIn(event.clipboardData);
  if (file) startFrom(file);
});
$("other").addEventListener("click", form.another);

$("erase").addEventListener("click", () => {
  form.mask.erasing = !form.mask.erasing;
  $("erase").setAttribute("aria-pressed", form.mask.erasing);
});
$("move").addEventListener("click", () => {
  form.mask.moving = !form.mask.moving;
  $("move").setAttribute("aria-pressed", form.mask.moving);
});
$("undo").addEventListener("click", () => form.mask.undo());
$("clear").addEventListener("click", () => form.mask.clear());
$("zoom-in").addEventListener("click", () => form.mask.magnify());
$("zoom-out").addEventListener("click", () => form.mask.shrink());
$("reuse-file").addEventListener("click", form.reuseFile);

for (const id of ["reuse", "image-button"]) $(id).addEventListener("click", () => startFrom(shown.blob));
$("result-seed").addEventListener("click", () => form.keepSeed(shown.seed));
$("again").addEventListener("click", () => form.restore(shown));
$("curl").addEventListener("click", showCurl);
$("forget").addEventListener("click", async () => {
  await history.forget();
  await showHistory();
});

$("key-button").addEventListener("click", askForKey);
$("key-form").addEventListener("submit", (event) => {
  if (event.submitter?.id === "key-forget") key.set("");
  else if ($("key").value.trim()) key.set($("key").value.trim());
  if (withoutKey) location.assign(withoutKey); // with the key that is kept now
  else connect();
});

form.choose("txt2img");
connect();
showHistory();
const [left] = jobs.stored().slice(-1); // by a page that was closed, or loaded again
if (left) {
  running = left;
  stage(begin);
}
watch(() => running?.id, showHistory);
