// How many tokens the prompt has, as the model's tokenizer cuts it into chunks of 75. Nothing, while the model is not in memory.

import { count } from "./server.js";

const PAUSE_MS = 400; // after the last key
const CHUNK = 75;

const ids = (id) => document.getElementById(id);
let timer = 0;
let asked = 0; // only the newest answer is shown

/** Counts anew after a short pause; `model` is the name of another model than the main one, or empty. */
export function countTokens(model) {
  clearTimeout(timer);
  timer = setTimeout(show, PAUSE_MS, model);
}

async function show(model) {
  const mine = ++asked;
  const chunks = ids("prompt").value.trim() ? await count(ids("prompt").value, model).catch(() => null) : null;
  if (mine === asked) ids("tokens").textContent = chunks ? told(chunks) : "";
}

function told(chunks) {
  if (chunks.length === 1) return `${chunks[0]} of ${CHUNK} tokens`;
  const all = chunks.reduce((sum, one) => sum + one);
  return `${all} tokens in ${chunks.length} chunks: ${chunks.join(" + ")}`;
}
