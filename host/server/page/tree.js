// Conversations as trees, and where they are kept.
//
// A conversation is { id, title, updated, nodes }. A node is { parent, next, role, content, … }; its number is its place in `nodes`, node 0 is
// the root without a text. `next` is the child that is shown after it. Editing and retrying add nodes, so that nothing is lost.

const PREFIX = "elapid.chat.";
const MOST_NODES = 100_000;
const ROLES = ["root", "user", "assistant"];

/** The browser's storage. Where it is forbidden, one that lasts as long as the page. */
export const store = (() => {
  try {
    localStorage.setItem("elapid.test", "");
    localStorage.removeItem("elapid.test");
    return localStorage;
  } catch {
    const kept = new Map();
    return {
      getItem: (key) => kept.get(key) ?? null,
      setItem: (key, value) => kept.set(key, value),
      removeItem: (key) => kept.delete(key),
      key: (i) => [...kept.keys()][i],
      get length() { return kept.size; },
      temporary: true,
    };
  }
})();

function newId() {
  return Array.from(crypto.getRandomValues(new Uint32Array(2)), (part) => part.toString(36)).join("");
}

export function create() {
  return { id: newId(), title: "New conversation", updated: Date.now(), nodes: [{ parent: null, next: null, role: "root", content: "" }] };
}

/** Adds a node and shows it. Gives its number. */
export function add(chat, parent, role, content) {
  const id = chat.nodes.push({ parent, next: null, role, content }) - 1;
  chat.nodes[parent].next = id;
  if (role === "user" && parent === 0) chat.title = content.trim().replace(/\s+/g, " ").slice(0, 60) || chat.title;
  return id;
}

/** The numbers of the nodes that are shown, without the root. */
export function path(chat) {
  const shown = [];
  for (let id = chat.nodes[0].next; id !== null; id = chat.nodes[id].next) shown.push(id);
  return shown;
}

/** The numbers of a node's children. */
export function children(chat, parent) {
  return chat.nodes.flatMap((node, id) => (node.parent === parent ? [id] : []));
}

/** What is sent: the shown texts down to a node. Answers in a row are one text that was continued. */
export function messages(chat, last) {
  const sent = [];
  for (let id = last; id > 0; id = chat.nodes[id].parent) {
    const { role, content } = chat.nodes[id];
    if (sent[0]?.role === role && role === "assistant") sent[0].content = content + sent[0].content;
    else sent.unshift({ role, content });
  }
  return sent;
}

/** A conversation from JSON that may hold anything; throws where it is none. */
function checked(value) {
  const { id, title, updated, nodes } = value ?? {};
  if (typeof title !== "string" || !Array.isArray(nodes) || nodes.length < 1 || nodes.length > MOST_NODES) throw new Error("not a conversation");
  const number = (value) => (Number.isFinite(value) ? value : undefined);
  const clean = nodes.map((node, i) => {
    const { parent, next, role, content } = node ?? {};
    // Parents come before their children, so there are no circles.
    const placed = i === 0 ? parent === null : Number.isInteger(parent) && parent >= 0 && parent < i;
    const led = next === null || (Number.isInteger(next) && next > i && next < nodes.length && nodes[next]?.parent === i);
    if (!placed || !led || ROLES.indexOf(role) < 0 || (role === "root") !== (i === 0) || typeof content !== "string") throw new Error(`message ${i} is damaged`);
    const kept = { parent, next, role, content };
    for (const name of ["finish", "model", "error"]) if (typeof node[name] === "string") kept[name] = node[name];
    for (const name of ["prompt", "cached", "received", "speed", "first"]) kept[name] = number(node[name]);
    if (node.json === true) kept.json = true;
    const sample = (sample) => Array.isArray(sample) && sample.length === 3 && sample.every(Number.isFinite);
    if (Array.isArray(node.samples)) kept.samples = node.samples.filter(sample).slice(0, 64);
    return kept;
  });
  return { id: typeof id === "string" && /^[a-z0-9]{1,32}$/.test(id) ? id : newId(), title: title.slice(0, 60), updated: number(updated) ?? 0, nodes: clean };
}

/** The conversations that are kept, the newest first. What can't be read is left where it is. */
export function load() {
  const keys = Array.from({ length: store.length }, (_, i) => store.key(i)).filter((key) => key.startsWith(PREFIX));
  const chats = keys.flatMap((key) => {
    try {
      return [checked(JSON.parse(store.getItem(key)))];
    } catch {
      return [];
    }
  });
  return chats.sort((a, b) => b.updated - a.updated);
}

export const isChatKey = (key) => key?.startsWith(PREFIX);
export const save = (chat) => store.setItem(PREFIX + chat.id, JSON.stringify(chat));
export const remove = (chat) => store.removeItem(PREFIX + chat.id);

export const exported = (chats) => JSON.stringify({ elapid: 1, conversations: chats }, null, 1);

/** The conversations of an exported file, as new ones. */
export function imported(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch (error) {
    throw new Error(`it is not JSON: ${error.message}`);
  }
  if (file?.elapid !== 1 || !Array.isArray(file.conversations)) throw new Error("it was not exported by this page");
  return file.conversations.map((value) => ({ ...checked(value), id: newId() }));
}
