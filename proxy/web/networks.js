// The LoRAs and embeddings that the prompt may name, as buttons under it: a click puts one where the cursor is.

const ids = (id) => document.getElementById(id);

/** Shows what GET /models says of a model; nothing, where there is neither. */
export function showNetworks(model) {
  const named = [
    ...(model?.loras ?? []).map((name) => [name, `<lora:${name}:1>`]),
    ...(model?.embeddings ?? []).map((name) => [name, name]),
  ];
  ids("networks").hidden = !named.length;
  ids("network-names").replaceChildren(...named.map(([name, text]) => button(name, text)));
}

function button(name, text) {
  const made = document.createElement("button");
  Object.assign(made, { type: "button", className: "quiet", textContent: name, title: text });
  made.addEventListener("click", () => insert(ids("prompt"), text));
  return made;
}

function insert(prompt, text) {
  const { selectionStart: start, selectionEnd: end, value } = prompt;
  const before = start && !/\s/.test(value[start - 1]) ? " " : "";
  prompt.setRangeText(before + text, start, end, "end");
  prompt.dispatchEvent(new Event("input", { bubbles: true }));
  prompt.focus();
}
