// The jobs of this browser. Their ids are stored, so that a page that is loaded again picks up what still runs.

import { Failure, blob, del, get, post } from "./server.js";

const STORE = "sd-jobs"; // of {id, path, fields}, the oldest first

export function stored() {
  return JSON.parse(localStorage.getItem(STORE) ?? "[]");
}

/** Starts a job with this form; `fields` are its texts, for the history. Throws Failure. */
export async function start(path, form, fields) {
  const { id } = await post(path, form, { Prefer: "respond-async" });
  const job = { id, path, fields };
  localStorage.setItem(STORE, JSON.stringify([...stored(), job]));
  return job;
}

/** Takes a job out of the store. Returns whether it was there: another tab may have done so. */
export function take({ id }) {
  const jobs = stored();
  const others = jobs.filter((job) => job.id !== id);
  localStorage.setItem(STORE, JSON.stringify(others));
  return others.length < jobs.length;
}

/** A job as the server shows it. Waits up to a second for its status to change. Throws Failure. */
export function show({ id }) {
  return get(`v1/jobs/${id}?wait=1`);
}

export function cancel({ id }) {
  return del(`v1/jobs/${id}`);
}

export function hasEnded({ status }) {
  return !["queued", "in_progress"].includes(status);
}

/** Whether an error says that the server knows a job no more. */
export function isGone({ status }) {
  return status === 404 || status === 410;
}

/** What the page says of a job that has not ended. */
export function told({ status, step, steps, queue_position, eta_seconds, loads }) {
  const left = eta_seconds > 2 ? `, about ${Math.round(eta_seconds)} s left` : "";
  if (loads) return "Loading the model …";
  if (status === "queued") return queue_position > 0 ? `Queued, place ${queue_position}${left} …` : "Queued …";
  return `Step ${step} of ${steps}${left}`;
}

/** The newest preview; null if there is none yet, or no more. */
export function preview({ preview_url }) {
  return preview_url ? blob(local(preview_url)).catch(() => null) : null;
}

/** The images of a completed job, as the history keeps them. Throws Failure for one that failed. */
export async function images({ path, fields }, { status, images, warnings = [], error }) {
  if (status === "failed") throw new Failure(error.message, 400);
  const made = images.map(async ({ url, seed, nsfw }) => (
    { blob: await blob(local(url)), seed, nsfw, warnings, task: path, fields, time: Date.now() }
  ));
  return Promise.all(made);
}

/** An address of the server's, relative to the page, which may be under a path, of which `/k/<key>` is in both. */
function local(url) {
  return url.replace(/^\/(k\/[^/]+\/)?/, "");
}
