// Makes and finds elements. Text becomes text nodes and never markup.

/** The elements of the page by their ids. */
export const ui = Object.fromEntries(Array.from(document.querySelectorAll("[id]"), (found) => [found.id, found]));

/** An element; `set` holds its properties, `data-*` and `aria-*` attributes, and listeners as `onclick`. */
export function element(name, set = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(set)) {
    if (value === undefined || value === null) continue;
    if (key.includes("-") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** An element of a drawing. */
export function shape(name, set = {}, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(set)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

/** Copies a text, also where pages without TLS have no clipboard. */
export async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const field = element("textarea", { value: text, className: "unseen" });
  const focused = document.activeElement;
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  focused?.focus();
  if (!copied) throw new Error("the browser refused");
}

/** Says something below the conversation, with a button if there is something to do. */
export function status(text, label, action) {
  ui.status.hidden = !text;
  const button = label && element("button", { type: "button", textContent: label, onclick: () => { status(""); action(); } });
  ui.status.replaceChildren(text, ...(button ? [" ", button] : []));
}

/** Changes what the browser keeps, and says when it is full. */
export function keep(change) {
  try {
    change();
  } catch {
    status("The browser's storage is full: export conversations and delete some, or the newest messages are lost on reload.");
  }
}
