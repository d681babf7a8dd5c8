// Settings: where they are kept, their dialog, and what they add to a request.

import { keep, ui } from "./dom.js";
import { store } from "./tree.js";

const PLACE = "elapid.settings";
const FIELDS = ["system", "temperature", "top_p", "max_tokens", "seed", "stops", "format", "schema", "key"];

/** All settings as the texts of their fields; an empty one is the server's default. */
export const settings = Object.fromEntries([...FIELDS, "model"].map((name) => [name, ""]));

let changedKey = () => {};

export function set(name, value) {
  settings[name] = value;
  keep(() => store.setItem(PLACE, JSON.stringify(settings)));
}

/** What the settings add to a request. Throws where the schema is wrong. */
export function requestOptions() {
  const made = { model: settings.model || undefined, stream: true, stream_options: { include_usage: true } };
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) if (settings[name] !== "") made[name] = Number(settings[name]);
  const stops = settings.stops.split("\n").filter((line) => line).map((line) => line.replaceAll("\\n", "\n"));
  if (stops.length) made.stop = stops;
  if (settings.format === "json_object") made.response_format = { type: "json_object" };
  if (settings.format === "json_schema") made.response_format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema: schema() } };
  return made;
}

function schema() {
  const read = JSON.parse(settings.schema || "{}");
  if (read === null || typeof read !== "object" || Array.isArray(read)) throw new Error("a schema is an object");
  return read;
}

export function openSettings() {
  fill();
  if (!ui.settings.open) ui.settings.showModal();
}

function fill() {
  for (const name of FIELDS) ui[name].value = settings[name];
  check();
}

function check() {
  ui.schemaField.hidden = settings.format !== "json_schema";
  let wrong = "";
  try {
    if (!ui.schemaField.hidden) schema();
  } catch (error) {
    wrong = `This is not a JSON schema: ${error.message}`;
  }
  ui.schemaError.hidden = !wrong;
  ui.schemaError.textContent = wrong;
  ui.hint.textContent = settings.format ? `Answers are ${ui.format.selectedOptions[0].textContent.trim()}` : "Enter sends, Shift+Enter begins a line";
}

/** Asks for the API key, and then does `action`. */
export function askKey(message, action) {
  ui.keyMessage.textContent = message;
  ui.newKey.value = "";
  ui.keyForm.onsubmit = () => { set("key", ui.newKey.value.trim()); action(); };
  if (!ui.keyDialog.open) ui.keyDialog.showModal();
}

/** Reads the settings that were kept. `changed` is called when the user enters another key. */
export function start(changed) {
  changedKey = changed;
  try {
    const read = JSON.parse(store.getItem(PLACE) ?? "{}");
    for (const name of Object.keys(settings)) if (typeof read[name] === "string") settings[name] = read[name];
  } catch {
    // Damaged: the defaults hold.
  }
  fill();
}

for (const name of FIELDS) ui[name].addEventListener("input", () => { if (ui[name].checkValidity()) set(name, ui[name].value); check(); });
ui.key.addEventListener("change", () => changedKey());
ui.reset.onclick = () => { for (const name of FIELDS) if (name !== "key") set(name, ""); fill(); };
ui.keyCancel.onclick = () => ui.keyDialog.close();
