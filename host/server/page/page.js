// The page: conversations, the composer, settings and shortcuts.

import * as api from "./api.js";
import { copy, element, keep, status, ui } from "./dom.js";
import { show } from "./markdown.js";
import * as memory from "./memory.js";
import { askKey, openSettings, requestOptions, set, settings, start } from "./settings.js";
import * as tree from "./tree.js";

const TOLD = "elapid.told.";
const POLL = 1000;
const MOST_SAMPLES = 32;
/** Milliseconds. */
const SHORTEST = 20;

let chats = tree.load();
let chat = chats[0] ?? tree.create();
let models = [];
/** What the server says of the model; nothing until it was asked. */
let props = null;
/** The answer that is being generated: { chat, id, abort }. */
let running = null;
let editing = null;
const deleted = new WeakSet();
let rebooting = 0;

function save(which) {
  // An answer may end after its conversation was deleted.
  if (deleted.has(which)) return;
  which.updated = Date.now();
  keep(() => tree.save(which));
  chats = [which, ...chats.filter((other) => other.id !== which.id)];
}

// ── The server ──

async function boot() {
  clearTimeout(rebooting);
  try {
    models = await api.models(settings.key);
    if (!models.includes(settings.model)) settings.model = models[0];
    props = await api.props(settings.key, settings.model);
    ui.banner.hidden = true;
  } catch (error) {
    const again = error.kind === "loading" || error.kind === "network";
    ui.banner.hidden = false;
    const label = error.kind === "key" ? "Give the key" : "Retry";
    const action = error.kind === "key" ? () => askKey(error.message, boot) : boot;
    ui.banner.replaceChildren(error.message, " ", element("button", { type: "button", textContent: label, onclick: action }));
    if (error.kind === "key") askKey(error.message, boot);
    if (again) rebooting = setTimeout(boot, 3000);
  }
  describe();
  draw();
}

/** Shows which model it is. */
function describe() {
  ui.modelName.textContent = models.length === 1 ? models[0] : "";
  ui.modelChoice.hidden = models.length < 2;
  ui.modelChoice.replaceChildren(...models.map((name) => element("option", { value: name, selected: name === settings.model }, name)));
  ui.input.placeholder = props && !props.chat_template ? "Write the beginning of a text…" : "Write a message…";
  if (props) ui.max_tokens.placeholder = props.default_max_tokens;
  const told = TOLD + settings.model;
  ui.note.hidden = !props || props.chat_template || tree.store.getItem(told) !== null;
  const dismiss = () => {
    keep(() => tree.store.setItem(told, "1"));
    ui.note.hidden = true;
    ui.input.focus();
  };
  ui.note.replaceChildren("This model has no chat template: it was not trained to answer. It continues your text. ",
    element("button", { type: "button", textContent: "Understood", onclick: dismiss }));
}

/** Generates an answer after node `parent`: as a new node, or again in the node `id` that failed. */
async function answer(which, parent, id) {
  let request;
  try {
    request = { messages: tree.messages(which, parent), ...requestOptions() };
    if (settings.system.trim()) request.messages.unshift({ role: "system", content: settings.system });
  } catch (error) {
    status(`The JSON schema can't be used: ${error.message}`, "Settings", openSettings);
    return;
  }
  id ??= tree.add(which, parent, "assistant", "");
  // It counts as stopped until it ends, also when the page is left.
  const node = { parent, next: null, role: "assistant", content: "", finish: "stopped", model: props?.model, json: Boolean(request.response_format), received: 0, samples: [] };
  which.nodes[id] = node;
  running = { chat: which, id, abort: new AbortController() };
  status("");
  save(which);
  draw();
  toEnd();
  const guess = tokensAt(which, parent);
  const sample = async () => {
    const read = await api.props(settings.key, request.model ?? "").catch(() => null);
    if (!read) return;
    props = read;
    node.samples.push([(node.prompt ?? guess) + node.received, read.resident_bytes ?? 0, read.state_bytes]);
    // Every second one is enough for the picture.
    if (node.samples.length > MOST_SAMPLES) node.samples = node.samples.filter((_, i) => i % 2);
    if (chat === which) drawMemory();
  };
  sample();
  const polling = setInterval(() => { sample(); save(which); }, POLL);
  const speak = speaker();
  try {
    await receive(node, api.chat(request, settings.key, running.abort.signal), speak);
    // Now that the length of the prompt is known.
    if (node.prompt !== undefined) for (const taken of node.samples) taken[0] += node.prompt - guess;
  } catch (error) {
    if (error.name !== "AbortError") {
      node.error = error.message;
      node.finish = undefined;
      if (error.kind === "key") askKey(error.message, () => { boot(); retry(which, id); });
    }
  }
  clearInterval(polling);
  speak(node.error ?? "", true);
  running = null;
  save(which);
  if (chat === which) draw();
  else drawChats();
  await sample();
  save(which);
}

/** Fills a node with the parts of an answer. */
async function receive(node, parts, speak) {
  const began = performance.now();
  let first = 0;
  for await (const part of parts) {
    const choice = part.choices[0];
    const text = choice?.delta?.content;
    if (text) {
      const now = performance.now();
      first ||= now;
      node.first = (first - began) / 1000;
      // The time of the first token is that of the prompt. Texts that arrive at once have no speed.
      if (now - first > SHORTEST) node.speed = (node.received * 1000) / (now - first);
      node.received += 1;
      node.content += text;
      speak(text);
      redrawAnswer();
    }
    if (choice?.finish_reason) node.finish = choice.finish_reason;
    if (part.usage) {
      node.prompt = part.usage.prompt_tokens;
      node.received = part.usage.completion_tokens;
      node.cached = part.usage.prompt_tokens_details?.cached_tokens ?? 0;
    }
  }
}

/** Reads out sentence by sentence: single tokens would interrupt each other. */
function speaker() {
  let waiting = "";
  return (text, all = false) => {
    waiting += text;
    const end = all ? waiting.length : Math.max(...[". ", "! ", "? ", "\n"].map((mark) => waiting.lastIndexOf(mark) + 1));
    if (end < 1) return;
    ui.spoken.append(element("p", {}, waiting.slice(0, end)));
    while (ui.spoken.childNodes.length > 20) ui.spoken.firstChild.remove();
    waiting = waiting.slice(end);
  };
}

/** Tokens down to a node: what the server counted, and a guess for what came after. */
function tokensAt(which, id) {
  let guessed = 0;
  for (; id > 0; id = which.nodes[id].parent) {
    const { prompt, received, content, role } = which.nodes[id];
    if (prompt !== undefined) return prompt + received + Math.round(guessed);
    guessed += role === "assistant" && received ? received : content.length / 4;
  }
  return Math.round(guessed);
}

// ── What one can do ──

function send() {
  const text = ui.input.value.trimEnd();
  if (running || !text.trim()) return;
  ui.input.value = "";
  fit();
  const tip = tree.path(chat).at(-1) ?? 0;
  answer(chat, tree.add(chat, tip, "user", text));
}

function stop() {
  running?.abort.abort();
}

/** Another answer in place of the one at `id`. A failed one without text makes room. */
function retry(which, id) {
  if (running) return;
  const node = which.nodes[id];
  answer(which, node.parent, node.error && !node.content && node.next === null ? id : undefined);
}

function goOn(id) {
  if (!running) answer(chat, id);
}

function edit(id) {
  if (running) return;
  editing = id;
  draw();
  ui.messages.querySelector(".edit textarea").focus();
}

function edited(id, text) {
  editing = null;
  if (text.trim()) answer(chat, tree.add(chat, chat.nodes[id].parent, "user", text.trimEnd()));
}

/** Takes the last question and its answers back. They stay in the tree. */
function undo() {
  if (running) return;
  const last = tree.path(chat).findLast((id) => chat.nodes[id].role === "user");
  if (last === undefined) return;
  const node = chat.nodes[last];
  Object.assign(chat.nodes[node.parent], { next: null, undone: last });
  if (!ui.input.value.trim()) ui.input.value = node.content;
  fit();
  save(chat);
  draw();
  ui.input.focus();
}

function redo() {
  const tip = tree.path(chat).at(-1) ?? 0;
  const next = chat.nodes[tip].undone ?? tree.children(chat, tip).at(-1);
  if (running || next === undefined) return;
  if (ui.input.value === chat.nodes[next].content) ui.input.value = "";
  chat.nodes[tip].next = next;
  save(chat);
  draw();
}

/** Shows the version `by` places from node `id`; without one, of the last node that has several. */
function turn(by, id) {
  const versions = (id) => tree.children(chat, chat.nodes[id].parent);
  id ??= tree.path(chat).findLast((id) => versions(id).length > 1);
  if (running || id === undefined) return;
  const all = versions(id);
  const other = all[all.indexOf(id) + by];
  if (other === undefined) return;
  chat.nodes[chat.nodes[id].parent].next = other;
  save(chat);
  draw();
}

function open(which) {
  chat = which;
  editing = null;
  status("");
  toggle("list", false);
  draw();
  toEnd();
  ui.input.focus();
}

function discard(which) {
  if (running?.chat === which) stop();
  deleted.add(which);
  tree.remove(which);
  chats = chats.filter((other) => other !== which);
  if (chat === which) chat = chats[0] ?? tree.create();
  draw();
  status(`“${which.title}” was deleted.`, "Undo", () => { deleted.delete(which); save(which); open(which); });
}

function exportChats() {
  const address = URL.createObjectURL(new Blob([tree.exported(chats)], { type: "application/json" }));
  element("a", { href: address, download: "elapid-conversations.json" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

async function importChats() {
  const [file] = ui.importFile.files;
  ui.importFile.value = "";
  if (!file) return;
  try {
    const added = tree.imported(await file.text());
    added.forEach(save);
    drawChats();
    status(`${added.length} conversation${added.length === 1 ? " was" : "s were"} imported.`);
  } catch (error) {
    status(`${file.name} can't be imported: ${error.message}.`);
  }
}

/** Shows or hides a side on narrow screens. */
function toggle(side, shown = !ui[side].classList.contains("shown")) {
  for (const other of ["list", "memory"]) {
    const is = other === side && shown;
    const button = ui[`${other}Button`];
    if (!is && ui[other].contains(document.activeElement) && button.checkVisibility()) button.focus();
    ui[other].classList.toggle("shown", is);
    button.setAttribute("aria-expanded", is);
  }
}

// ── What is shown ──

function draw() {
  const focused = document.activeElement?.dataset.key;
  const atEnd = isAtEnd();
  const shown = tree.path(chat);
  ui.messages.replaceChildren(...shown.map((id, place) => message(id, place, place === shown.length - 1)));
  if (!shown.length) ui.messages.append(element("p", { className: "empty" }, props && !props.chat_template ? "Give the model the beginning of a text." : "Ask the model something."));
  const undone = tree.children(chat, shown.at(-1) ?? 0).length;
  ui.undone.hidden = !undone;
  ui.undone.textContent = `${undone === 1 ? "A continuation was" : `${undone} continuations were`} taken back. Redo shows it again.`;
  ui.undo.disabled = Boolean(running) || !shown.length;
  ui.redo.disabled = Boolean(running) || !undone;
  if (running && document.activeElement === ui.send) ui.input.focus();
  if (!running && document.activeElement === ui.stop) ui.input.focus();
  ui.send.hidden = Boolean(running);
  ui.stop.hidden = !running;
  document.title = shown.length ? `${chat.title} – Elapid` : "Elapid";
  drawChats();
  drawMemory();
  if (atEnd) toEnd();
  if (focused) (ui.messages.querySelector(`[data-key="${focused}"]:not(:disabled)`) ?? ui.input).focus();
}

function drawChats() {
  ui.chats.replaceChildren(...chats.map((which) => element("li", {},
    element("button", { className: "title", onclick: () => open(which), "aria-current": which === chat ? "true" : null }, which.title),
    element("button", { className: "plain", onclick: () => discard(which), "aria-label": `Delete “${which.title}”` }, "✕"))));
}

function message(id, place, last) {
  const node = chat.nodes[id];
  const own = node.role === "user";
  const busy = running?.chat === chat && running.id === id;
  const action = (name, label, onclick) => element("button", { type: "button", onclick, disabled: Boolean(running), "data-key": `${place}:${name}`, "aria-label": label }, name);
  const made = element("article", { className: own ? "own" : "answer", "aria-label": own ? "You" : "Model", "aria-busy": busy ? "true" : null });
  if (editing === id) {
    made.append(editor(id));
    return made;
  }
  const text = element("div", { className: "text" });
  if (own) text.textContent = node.content;
  else show(text, node.content, node.json);
  const versions = tree.children(chat, node.parent);
  const at = versions.indexOf(id);
  const step = (by, label, sign) => element("button", { type: "button", "aria-label": label, "data-key": `${place}:${sign}`, disabled: Boolean(running) || versions[at + by] === undefined, onclick: () => turn(by, id) }, sign);
  const branches = versions.length > 1 ? element("span", { className: "branches", role: "group", "aria-label": "Versions" },
    step(-1, "Previous version", "‹"), element("span", {}, ` ${at + 1}/${versions.length} `), step(1, "Next version", "›")) : null;
  const copying = action("Copy", "Copy this message", () => copy(node.content).then(() => status("Copied."), () => status("The browser did not copy it.")));
  const mayGoOn = last && !own && props && !props.chat_template && node.content && ["length", "stopped"].includes(node.finish);
  const actions = element("div", { className: "actions" }, branches,
    own ? action("Edit", "Edit this message", () => edit(id)) : action("Retry", "Generate another answer", () => retry(chat, id)),
    mayGoOn ? action("Continue", "Continue this text", () => goOn(id)) : null, node.content ? copying : null);
  if (!own && node.error) made.append(text, element("p", { className: "error" }, node.error), actions);
  else made.append(text, busy ? element("div", { className: "actions small" }, "Working…") : actions);
  if (!own && !busy) actions.append(element("span", { className: "facts" }, facts(node)));
  return made;
}

/** What is known of an answer, in words. */
function facts(node) {
  const round = (number) => (number < 10 ? number.toFixed(1) : Math.round(number).toLocaleString("en"));
  const known = [];
  if (node.speed) known.push(`${round(node.speed)} tokens/s`);
  if (node.received) known.push(`${node.received} tokens`);
  if (node.first !== undefined) known.push(`first after ${node.first.toFixed(2)} s`);
  if (node.prompt !== undefined) known.push(`prompt ${node.prompt}: ${node.cached} cached, ${node.prompt - node.cached} read`);
  if (node.finish === "length") known.push("ended at the limit of tokens");
  if (node.finish === "stopped") known.push("stopped");
  if (!node.content && !node.error) known.push("the model ended without a text");
  return known.join(" · ");
}

function editor(id) {
  const field = element("textarea", { value: chat.nodes[id].content, "aria-label": "Edit your message", rows: Math.min(12, chat.nodes[id].content.split("\n").length + 1) });
  const cancel = () => { editing = null; draw(); ui.input.focus(); };
  field.onkeydown = (event) => {
    if (event.key === "Escape") { event.stopPropagation(); cancel(); }
    if (enters(event)) { event.preventDefault(); edited(id, field.value); }
  };
  const form = element("form", { className: "edit", onsubmit: (event) => { event.preventDefault(); edited(id, field.value); } }, field,
    element("div", { className: "row" }, element("button", { className: "main" }, "Send"), element("button", { type: "button", onclick: cancel }, "Cancel")));
  return form;
}

let drawing = 0;
/** Shows what was added to the answer, at most once a frame. */
function redrawAnswer() {
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    const text = ui.messages.querySelector("[aria-busy] .text");
    if (!running || running.chat !== chat || !text) return;
    const atEnd = isAtEnd();
    const node = chat.nodes[running.id];
    show(text, node.content, node.json);
    if (atEnd) toEnd();
  });
}

function isAtEnd() {
  return ui.scroll.scrollHeight - ui.scroll.scrollTop - ui.scroll.clientHeight < 60;
}

function toEnd() {
  ui.scroll.scrollTop = ui.scroll.scrollHeight;
}

function drawMemory() {
  ui.memory.hidden = !props;
  if (!props) return;
  const shown = tree.path(chat);
  const samples = shown.flatMap((id) => (chat.nodes[id].model === props.model && chat.nodes[id].samples) || []);
  memory.draw(ui, props, tokensAt(chat, shown.at(-1) ?? 0), samples.sort((a, b) => a[0] - b[0]));
}

/** Fits the message field to its text. */
function fit() {
  ui.input.style.height = "auto";
  ui.input.style.height = `${Math.min(ui.input.scrollHeight + 2, innerHeight / 3)}px`;
}

// ── Keys and clicks ──

/** Whether a key sends. On touch screens Enter begins a line. */
function enters(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && (event.ctrlKey || !matchMedia("(pointer: coarse)").matches);
}

const lastOf = (role) => tree.path(chat).findLast((id) => chat.nodes[id].role === role);
const withLast = (role, action) => () => { const id = lastOf(role); if (id !== undefined) action(id); };
const SHORTCUTS = [
  ["Alt+N", "KeyN", "New conversation", () => open(tree.create())],
  ["Alt+R", "KeyR", "Generate another answer", withLast("assistant", (id) => retry(chat, id))],
  ["Alt+E", "KeyE", "Edit your last message", withLast("user", edit)],
  ["Alt+U", "KeyU", "Undo: take the last message and its answer back", undo],
  ["Alt+Y", "KeyY", "Redo", redo],
  ["Alt+↑", "ArrowUp", "Previous version of the last message that has several", () => turn(-1)],
  ["Alt+↓", "ArrowDown", "Next version", () => turn(1)],
  ["Alt+I", "KeyI", "Go to the message field", () => ui.input.focus()],
  ["Alt+L", "KeyL", "Go to the conversations", () => { toggle("list", true); ui.newButton.focus(); }],
  ["Alt+M", "KeyM", "Show or hide memory (narrow screens)", () => toggle("memory")],
  ["Alt+S", "KeyS", "Settings", openSettings],
  ["Alt+H", "KeyH", "This list", () => ui.help.showModal()],
];
const LISTED = [["Enter", "Send; on touch screens Ctrl+Enter"], ["Shift+Enter", "Begin a line"], ["Esc", "Stop the answer; close what is open"]];

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    if (ui.list.classList.contains("shown") || ui.memory.classList.contains("shown")) toggle("list", false);
    else stop();
    return;
  }
  // Ctrl with Alt is AltGr, which writes characters.
  if (!event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const shortcut = SHORTCUTS.find(([, code]) => code === event.code);
  if (!shortcut) return;
  event.preventDefault();
  shortcut[3]();
});

ui.shortcuts.append(...[...LISTED, ...SHORTCUTS.map(([keys, , does]) => [keys, does])].flatMap(([keys, does]) => [element("dt", {}, element("kbd", {}, keys)), element("dd", {}, does)]));
ui.composer.onsubmit = (event) => { event.preventDefault(); send(); };
ui.input.onkeydown = (event) => { if (enters(event)) { event.preventDefault(); send(); } };
ui.input.oninput = fit;
ui.stop.onclick = stop;
ui.undo.onclick = undo;
ui.redo.onclick = redo;
ui.newButton.onclick = () => open(tree.create());
ui.listButton.onclick = () => toggle("list");
ui.memoryButton.onclick = () => toggle("memory");
ui.settingsButton.onclick = openSettings;
ui.helpButton.onclick = () => ui.help.showModal();
ui.exportButton.onclick = exportChats;
ui.importButton.onclick = () => ui.importFile.click();
ui.importFile.onchange = importChats;
ui.modelChoice.onchange = () => { set("model", ui.modelChoice.value); boot(); };
// Another tab may have changed a conversation, or deleted it.
addEventListener("storage", (event) => {
  if (!tree.isChatKey(event.key) || running || editing !== null) return;
  chats = tree.load();
  chat = chats.find((other) => other.id === chat.id) ?? chat;
  draw();
});
addEventListener("pagehide", () => { if (running) save(running.chat); });

if (tree.store.temporary) status("This browser keeps nothing for this page: conversations are lost on reload.");
start(boot);
draw();
toEnd();
ui.input.focus();
boot();
