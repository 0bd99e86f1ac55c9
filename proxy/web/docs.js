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

function operation(path, method, described) {
  const body = resolve(Object.values(described.requestBody?.content ?? {})[0]?.schema);
  const parts = [element("h2", `${method.toUpperCase()} ${path}`), element("p", described.summary)];
  if (described["x-curl"]) parts.push(element("pre", described["x-curl"].replace("http://127.0.0.1:1337/", new URL(".", document.baseURI))));
  if (body) {
    parts.push(element("h3", `Fields, as ${Object.keys(described.requestBody.content).join(", ")}`), fields(body));
    parts.push(element("p", described.description));
  }
  parts.push(element("h3", "Answers"), answers(described.responses));
  for (const part of parts) if (part.tagName === "PRE") part.tabIndex = 0; // scrolls by keyboard
  return element("section", ...parts);
}

document.getElementById("state").textContent = `version ${document_.info.version}`;
document.getElementById("docs").append(
  element("p", document_.info.description),
  ...Object.entries(document_.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, described]) => operation(path, method, described))),
);
