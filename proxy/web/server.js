// The server as the page sees it. Every address is relative, so that the page also works under /k/<key>/.

const KEY = "sd-api-key";
const here = new URL(".", document.baseURI);
const inAddress = here.pathname.match(/^(.*\/)k\/[^/]+\/$/);

/** The page's address without the key in it; null where there is none. A key in it is newer than a stored one. */
export const withoutKey = inAddress && new URL(inAddress[1], here);

export const key = {
  get: () => localStorage.getItem(KEY) ?? "",
  set: (value) => (value ? localStorage.setItem(KEY, value) : localStorage.removeItem(KEY)),
};

export class Failure extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function headers(more = {}) {
  return key.get() && !withoutKey ? { ...more, "X-API-Key": key.get() } : more;
}

async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  return new Failure(body.message ?? body.error?.message ?? `The server answered with status ${response.status}.`, response.status);
}

async function ask(method, path, body, more) {
  const response = await fetch(path, { method, body, headers: headers(more) });
  if (!response.ok) throw await refusal(response);
  return response;
}

/** How many tokens each chunk of a prompt has. Throws Failure. */
export async function count(prompt, model) {
  return (await post("tokens", new URLSearchParams({ prompt, model }))).prompt;
}

/** What GET `path` answers, as JSON. Throws Failure. */
export async function get(path) {
  return (await ask("GET", path)).json();
}

/** A file. Throws Failure. */
export async function blob(path) {
  return (await ask("GET", path)).blob();
}

/** Sends a form. Throws Failure. */
export async function post(path, form, more) {
  return (await ask("POST", path, form, more)).json();
}

export async function del(path) {
  return (await ask("DELETE", path)).json();
}

function quoted(text) {
  return `'${String(text).replaceAll("'", "'\\''")}'`;
}

/** The curl command that sends the same form. A key stays out of it. */
export function curl(path, form) {
  const url = new URL(path, withoutKey ?? here);
  const parts = [`curl -s ${quoted(url)}`];
  if (withoutKey || key.get()) parts.push('-H "X-API-Key: $SD_API_KEY"');
  for (const [name, value] of form) {
    if (name === "preview") continue;
    parts.push(value instanceof Blob ? `-F ${name}=@${name}.png` : `--form-string ${quoted(`${name}=${value}`)}`);
  }
  return parts.join(" \\\n  ") + " \\\n  -o answer.json";
}
