// Fills the server's queue with jobs, for libraries to meet it.

const LONG = { kind: "txt2img", prompt: "a house", num_inference_steps: 250, num_outputs: 4 };

/** Runs `meet` while this client has as many open requests as the server allows it, `limit`. */
export async function whileFull(server, limit, meet) {
  const send = (method, path, body) =>
    fetch(`${server}/v1/jobs${path}`, { method, body, headers: { "Content-Type": "application/json" } });
  const jobs = [];
  for (let i = 0; i < limit; i++) jobs.push(await (await send("POST", "", JSON.stringify(LONG))).json());
  try {
    return await meet();
  } finally {
    for (const job of jobs) await send("DELETE", `/${job.id}`);
  }
}
