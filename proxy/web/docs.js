// Shows openapi.json: no more of OpenAPI is understood than that document uses.

const document_ = await (await fetch("openapi.json")).json();

function resolve(node) {
  if (!node?.$ref) return node;
  return node.$ref.slice(2).split("/").reduce((at, name) => at[name], document_);
}

function element(tag, ...children) {
  const made = document.createElement(tag);
  made.append(...children.filter((child) => child !== undefined));
  return made;
}

function table(head, rows) {
  const cells = (tag, row) => element("tr", ...row.map((cell) => element(tag, cell)));
  return element("table", element("thead", cells("th", head)), element("tbody", ...rows.map((row) => cells("td", row))));
}

function rule(schema) {
  const { type, minimum, exclusiveMinimum, maximum, multipleOf, maxLength } = schema;
  const parts = [type];
  if (multipleOf) parts.push(`in steps of ${multipleOf}`);
  if (exclusiveMinimum !== undefined) parts.push(`above ${exclusiveMinimum}`);
  if (minimum !== undefined) parts.push(`from ${minimum}`);
  if (maximum !== undefined) parts.push(`to ${maximum}`);
  if (maxLength) parts.push(`at most ${maxLength} characters`);
  return parts.join(" ");
}

function fields(schema) {
  const rows = Object.entries(schema.properties).map(([name, one]) => [
    element("code", name), schema.required?.includes(name) ? "required" : String(one.default ?? ""), rule(one), one.description ?? "",
  ]);
  return table(["field", "default", "rule", "meaning"], rows);
}

function answers(responses) {
  return table(["status", "meaning", "for example"], Object.entries(responses).map(([status, answer]) => {
    const { description, content } = resolve(answer);
    const example = content?.["application/json"]?.example;
    return [status, description, example ? element("code", JSON.stringify(example)) : ""];
  }));
}

/** Lines to run, for this server, with a button that copies them. */
function lines(text, label) {
  const shown = element("pre", text.replaceAll("http://127.0.0.1:1337", String(new URL(".", document.baseURI)).slice(0, -1)));
  shown.tabIndex = 0; // scrolls by keyboard
  shown.ariaLabel = label;
  const button = Object.assign(element("button", "Copy"), { type: "button", className: "quiet" });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(shown.textContent);
      button.textContent = "Copied";
    } catch { // browsers block copying on plain-http pages
      getSelection().selectAllChildren(shown);
    }
  });
  return Object.assign(element("div", shown, button), { className: "lines" });
}

function operation(path, method, described) {
  const body = resolve(Object.values(described.requestBody?.content ?? {})[0]?.schema);
  const parts = [element("h2", `${method.toUpperCase()} ${path}`), element("p", described.summary)];
  if (described["x-curl"]) parts.push(lines(described["x-curl"], "With curl"));
  if (body) {
    parts.push(element("h3", `Fields, as ${Object.keys(described.requestBody.content).join(", ")}`), fields(body));
    parts.push(element("p", described.description));
  }
  parts.push(element("h3", "Answers"), answers(described.responses));
  return element("section", ...parts);
}

// --- a tab for each dialect ---

function panel({ name, description, "x-curl": curl, "x-python": python }) {
  const parts = [element("p", description), element("h2", "With curl"), lines(curl, "With curl")];
  if (python) parts.push(element("h2", "With Python"), lines(python, "With Python"));
  const operations = Object.entries(document_.paths).flatMap(([path, methods]) =>
    Object.entries(methods).filter(([, one]) => one.tags.includes(name)).map(([method, one]) => operation(path, method, one)));
  const made = Object.assign(element("div", ...parts, ...operations), { id: `panel-${name}`, role: "tabpanel" });
  made.setAttribute("aria-labelledby", `tab-${name}`);
  return made;
}

function choose(chosen) {
  for (const tab of tabs) {
    tab.ariaSelected = String(tab === chosen);
    tab.tabIndex = tab === chosen ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
  }
}

const tabs = document_.tags.map(({ name }, index) => {
  const tab = Object.assign(element("button", name === "Native" ? "Photoshop plugin" : name), { type: "button", role: "tab", id: `tab-${name}` });
  tab.setAttribute("aria-controls", `panel-${name}`);
  const show = (one) => {
    history.replaceState(null, "", `#${one.id.slice(4)}`);
    choose(one);
  };
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    const next = tabs[(index + move + tabs.length) % tabs.length];
    show(next);
    next.focus();
  });
  return tab;
});
const list = Object.assign(element("div", ...tabs), { role: "tablist", ariaLabel: "API" });

document.getElementById("state").textContent = `version ${document_.info.version}`;
document.getElementById("docs").append(
  element("p", document_.info.description), list, ...document_.tags.map(panel),
);
choose(tabs.find((tab) => tab.id === `tab-${location.hash.slice(1)}`) ?? tabs[0]);
