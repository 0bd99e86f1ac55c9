// The jobs of this browser that are not on the stage: of other tabs, or of pages that were closed.

import { $, showError } from "./form.js";
import * as history from "./history.js";
import * as jobs from "./jobs.js";

const POLL_MS = 1000;

/**
 * Lists them, for ever. `onStage` gives the id of the job that the page shows itself; `changed` is called once a job's
 * images are among the earlier ones.
 */
export async function watch(onStage, changed) {
  for (;;) {
    const others = jobs.stored().filter(({ id }) => id !== onStage());
    await Promise.all(others.map((job) => look(job, changed)));
    const left = new Set(jobs.stored().map(({ id }) => id));
    for (const item of [...$("jobs").children]) {
      if (!left.has(item.dataset.id) || item.dataset.id === onStage()) item.remove();
    }
    $("others").hidden = !$("jobs").children.length;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

async function look(job, changed) {
  try {
    const now = await jobs.show(job);
    if (!jobs.hasEnded(now)) {
      item(job).firstChild.textContent = `${job.fields.prompt || "Image"}: ${jobs.told(now)}`;
    } else if (jobs.take(job) && now.status === "completed") {
      for (const image of await jobs.images(job, now)) await history.keep(image).catch(() => {});
      await changed();
    }
  } catch (error) {
    if (jobs.isGone(error)) jobs.take(job); // otherwise it is asked about again
  }
}

/** The line of a job. */
function item(job) {
  const there = [...$("jobs").children].find(({ dataset }) => dataset.id === job.id);
  if (there) return there;
  const made = document.createElement("li");
  made.dataset.id = job.id;
  const button = Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: "Cancel" });
  button.addEventListener("click", () => jobs.cancel(job).catch((error) => showError(error.message)));
  made.append(document.createElement("span"), button);
  $("jobs").append(made);
  return made;
}
