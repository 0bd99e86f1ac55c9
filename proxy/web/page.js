// The page: draws what the form says, shows it come into being, and keeps what came of it.

import * as form from "./form.js";
import { $ } from "./form.js";
import * as history from "./history.js";
import { Failure, curl, generate, get, key, withoutKey } from "./server.js";

const RETRY_MS = 2000;
let running = null; // the AbortController of what is being drawn
let shown = null; // the picture on the stage: {blob, url, seed, nsfw, task, fields}

// --- the server ---

async function connect() {
  try {
    const { models } = await get("models");
    form.describe(models, await get("custom_models"));
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
  $("key-heading").textContent = refused ? "This key does not open the server" : "This server wants a key";
  $("key-forget").hidden = !key.get();
  $("state").textContent = "This server wants a key.";
  $("key-button").hidden = false;
  $("key").value = "";
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

// --- drawing ---

async function draw() {
  if (running) return;
  form.clearError();
  const controller = new AbortController();
  running = controller;
  const path = form.path();
  try {
    const sent = await form.collect();
    begin();
    for await (const { name, data } of generate(path, sent, controller.signal)) {
      if (name === "progress") progress(data);
      else await results(data.images, path, form.texts(sent));
    }
    connectedModels(path);
  } catch (error) {
    if (error.status === 401) askForKey(error);
    else if (!controller.signal.aborted) form.showError(error instanceof TypeError ? "The server cannot be reached: is it running?" : error.message);
  } finally {
    running = null;
    $("progress").hidden = $("preview-picture").hidden = true;
    $("draw").disabled = false;
    if (shown) $("picture-button").hidden = $("about").hidden = false;
    else $("empty").hidden = false;
  }
}

function begin() {
  $("draw").disabled = true;
  $("progress").hidden = false;
  $("about").hidden = true;
  $("bar").removeAttribute("value");
  $("steps").textContent = "Waiting for its turn …";
  $("cancel").focus({ preventScroll: true });
  if (matchMedia("(max-width: 52rem)").matches) $("stage").scrollIntoView({ block: "start" });
}

function progress({ step, of, preview }) {
  $("bar").max = of;
  $("bar").value = step;
  $("steps").textContent = `Step ${step} of ${of}`;
  if (!preview) return;
  $("preview-picture").src = `data:image/jpeg;base64,${preview}`;
  $("preview-picture").hidden = false;
  $("picture-button").hidden = $("empty").hidden = true;
}

async function results(images, task, fields) {
  const pictures = [];
  for (const { base64, seed, nsfw, mimetype } of images) {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    pictures.push({ blob: new Blob([bytes], { type: mimetype }), seed, nsfw, task, fields, time: Date.now() });
  }
  for (const picture of pictures) await history.keep(picture).catch(() => {});
  list($("results"), pictures.length > 1 ? pictures : []);
  show(pictures[0]);
  await showHistory();
}

/** A custom model tells its defaults once it is loaded. */
async function connectedModels(path) {
  if (path.startsWith("custom/")) await connect();
}

// --- pictures ---

function show(picture) {
  if (shown) URL.revokeObjectURL(shown.url);
  shown = { ...picture, url: URL.createObjectURL(picture.blob) };
  const prompt = picture.fields.prompt;
  $("picture").src = shown.url;
  $("picture").alt = prompt ? `Picture: ${prompt}` : "Picture without words";
  $("picture-button").hidden = $("about").hidden = false;
  $("empty").hidden = true;
  $("caption").textContent = prompt;
  $("result-seed").textContent = picture.seed;
  $("nsfw").hidden = !picture.nsfw;
  $("download").href = shown.url;
  $("download").download = `${(prompt || "picture").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60)}-${picture.seed}.png`;
  for (const button of document.querySelectorAll("li button")) {
    button.setAttribute("aria-current", button.picture.seed === picture.seed && button.picture.time === picture.time);
  }
}

function list(element, pictures) {
  for (const image of element.querySelectorAll("img")) URL.revokeObjectURL(image.src);
  element.replaceChildren(
    ...pictures.map((picture) => {
      const button = Object.assign(document.createElement("button"), { type: "button", picture });
      const image = Object.assign(document.createElement("img"), {
        src: URL.createObjectURL(picture.blob), loading: "lazy", alt: `${picture.fields.prompt || "picture"}, seed ${picture.seed}`,
      });
      button.append(image);
      button.addEventListener("click", () => {
        show(picture);
        if (element.id === "history") $("stage").scrollIntoView({ block: "nearest" });
      });
      const item = document.createElement("li");
      item.append(button);
      return item;
    }),
  );
}

async function showHistory() {
  const pictures = await history.kept().catch(() => []);
  list($("history"), pictures);
  $("earlier").hidden = !pictures.length;
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
    $("curl-text").value = curl(form.path(), await form.collect());
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
    $("curl-note").textContent = "Copy it from here: this browser lets no page do so over plain http.";
  }
}

// --- what the user does ---

function pictureIn(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/"));
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "Enter") draw();
  if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) running.abort();
});
$("cancel").addEventListener("click", () => running?.abort());

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
  const file = pictureIn(event.dataTransfer);
  if (file) startFrom(file);
});
document.addEventListener("paste", (event) => {
  const file = pictureIn(event.clipboardData);
  if (file) startFrom(file);
});
$("other").addEventListener("click", form.another);

$("erase").addEventListener("click", () => {
  form.mask.erasing = !form.mask.erasing;
  $("erase").setAttribute("aria-pressed", form.mask.erasing);
});
$("undo").addEventListener("click", () => form.mask.undo());
$("clear").addEventListener("click", () => form.mask.clear());

for (const id of ["reuse", "picture-button"]) $(id).addEventListener("click", () => startFrom(shown.blob));
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
