// Shows Markdown as elements. Nothing of a text becomes markup: unknown syntax, HTML too, stays as it was written.

import { copy, element } from "./dom.js";

// Texts are untrusted: these bound the time that a hostile one can take.
const DEEPEST = 6;
const LONGEST_SPAN = 2000;

/** Shows `text` in `into`. Blocks that did not change since the last call stay, so that a growing answer costs what was added. */
export function show(into, text, codeOnly = false) {
  const blocks = codeOnly ? [{ kind: "code", language: "json", lines: text.split("\n") }] : parse(text.split("\n"));
  into.blocks ??= [];
  let same = 0;
  const sources = blocks.map((block) => JSON.stringify(block));
  while (same < sources.length && sources[same] === into.blocks[same]) same += 1;
  while (into.childNodes.length > same) into.lastChild.remove();
  for (const block of blocks.slice(same)) into.append(build(block, 0));
  into.blocks = sources;
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}>\s?(.*)$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)+\|?\s*$/;

/** The blocks of lines. */
function parse(lines) {
  const blocks = [];
  let paragraph = [];
  const close = () => {
    if (paragraph.length) blocks.push({ kind: "paragraph", lines: paragraph });
    paragraph = [];
  };
  for (let i = 0; i < lines.length; i += 1) {
    const line = lines[i];
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    if (fence) {
      close();
      const code = [];
      const ends = (line) => line.trim().startsWith(fence[1]) && !line.trim().replaceAll(fence[1][0], "");
      for (i += 1; i < lines.length && !ends(lines[i]); i += 1) code.push(lines[i]);
      blocks.push({ kind: "code", language: fence[2], lines: code });
    } else if (!line.trim()) {
      close();
    } else if (heading) {
      close();
      blocks.push({ kind: "heading", level: heading[1].length, lines: [heading[2].replace(/\s#+\s*$/, "")] });
    } else if (RULE.test(line)) {
      close();
      blocks.push({ kind: "rule" });
    } else if (QUOTE.test(line)) {
      close();
      const quoted = [];
      for (; i < lines.length && QUOTE.test(lines[i]); i += 1) quoted.push(QUOTE.exec(lines[i])[1]);
      blocks.push({ kind: "quote", lines: quoted });
      i -= 1;
    } else if (ITEM.test(line)) {
      close();
      i = list(lines, i, blocks) - 1;
    } else if (line.includes("|") && (lines[i + 1] ?? "").length < LONGEST_SPAN && TABLE_RULE.test(lines[i + 1] ?? "")) {
      close();
      const rows = [cells(line)];
      for (i += 2; i < lines.length && lines[i].includes("|"); i += 1) rows.push(cells(lines[i]));
      blocks.push({ kind: "table", rows });
      i -= 1;
    } else {
      paragraph.push(line);
    }
  }
  close();
  return blocks;
}

/** Adds the list that begins at line `i`. Gives the line after it. */
function list(lines, i, blocks) {
  const [, indent, mark] = ITEM.exec(lines[i]);
  const ordered = /\d/.test(mark);
  const items = [];
  for (; i < lines.length; i += 1) {
    const item = ITEM.exec(lines[i]);
    const deeper = /^\s*/.exec(lines[i])[0].length > indent.length + 1;
    if (item && !deeper) {
      if (/\d/.test(item[2]) !== ordered) break;
      items.push([item[3]]);
    } else if (deeper && lines[i].trim()) {
      // What lies below an item is read as blocks of its own.
      items.at(-1).push(lines[i].slice(Math.min(indent.length + mark.length + 1, /\S/.exec(lines[i]).index)));
    } else if (!lines[i].trim() && (ITEM.test(lines[i + 1] ?? "") || /^\s{2,}\S/.test(lines[i + 1] ?? ""))) {
      items.at(-1).push("");
    } else {
      break;
    }
  }
  blocks.push({ kind: "list", start: ordered ? parseInt(mark, 10) : null, items });
  return i;
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
}

function build(block, depth) {
  const inside = (lines) => (depth < DEEPEST ? parse(lines).map((inner) => build(inner, depth + 1)) : [lines.join("\n")]);
  switch (block.kind) {
    case "code": return codeBlock(block.language, block.lines.join("\n"));
    // The page's own headings are the first two levels.
    case "heading": return element(`h${Math.min(block.level + 2, 6)}`, {}, ...inline(block.lines[0]));
    case "rule": return element("hr");
    case "quote": return element("blockquote", {}, ...inside(block.lines));
    case "list": {
      const items = block.items.map((lines) => {
        const inner = inside(lines);
        // A single paragraph needs no space around it.
        const first = inner[0]?.nodeName === "P" ? [...inner.shift().childNodes] : [];
        return element("li", {}, ...first, ...inner);
      });
      return element(block.start === null ? "ul" : "ol", { start: block.start ?? undefined }, ...items);
    }
    case "table": {
      const row = (name) => (texts) => element("tr", {}, ...texts.map((text) => element(name, {}, ...inline(text))));
      const [head, ...body] = block.rows;
      const table = element("table", {}, element("thead", {}, row("th")(head)), element("tbody", {}, ...body.map(row("td"))));
      return element("div", { className: "wide", tabIndex: 0, role: "region", "aria-label": "Table" }, table);
    }
    default: return element("p", {}, ...inline(block.lines.join("\n")));
  }
}

function codeBlock(language, text) {
  const button = element("button", { type: "button", textContent: "Copy", "aria-label": "Copy this code" });
  button.onclick = async () => {
    button.textContent = await copy(text).then(() => "Copied", () => "Not copied");
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  };
  const head = element("div", { className: "codehead" }, element("span", {}, language), button);
  const code = element("pre", { tabIndex: 0 }, element("code", {}, text));
  return element("div", { className: "code" }, head, code);
}

// Where a span may begin: an escape, code, a link or image, bold or italic, an address.
const SPAN = /\\[\\`*_[\]()#+\-.!|>~]|`+|!?\[|\*{1,3}|__?|https?:\/\/[^\s<>"'`)\]]+/g;

/** The elements of a line. */
function inline(text, depth = 0) {
  const made = [];
  let done = 0;
  const find = new RegExp(SPAN);
  for (let match; (match = find.exec(text)); ) {
    const span = readSpan(text, match.index, match[0], depth);
    if (!span) continue;
    if (match.index > done) made.push(text.slice(done, match.index));
    made.push(...span.nodes);
    done = find.lastIndex = span.end;
  }
  if (done < text.length) made.push(text.slice(done));
  return made;
}

/** The span that `mark` opens at `at`, and where it ends; nothing where it opens none. */
function readSpan(text, at, mark, depth) {
  const begin = at + mark.length;
  const near = text.slice(begin, begin + LONGEST_SPAN);
  if (mark[0] === "\\") return { nodes: [mark[1]], end: begin };
  if (mark[0] === "`") {
    const length = near.indexOf(mark);
    if (length < 0) return null;
    return { nodes: [element("code", {}, near.slice(0, length).trim() || near.slice(0, length))], end: begin + length + mark.length };
  }
  if (mark.startsWith("http")) {
    const address = mark.replace(/[.,;:!?*_]+$/, "");
    return { nodes: link(address, [address]), end: at + address.length };
  }
  if (depth >= DEEPEST) return null;
  if (mark.endsWith("[")) {
    const parts = /^([^[\]]*)\]\(\s*<?([^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*)>?(?:\s+"[^"]*")?\s*\)/.exec(near);
    return parts && { nodes: link(parts[2], inline(parts[1], depth + 1)), end: begin + parts[0].length };
  }
  // Marks inside words, as in snake_case, and before spaces are none.
  const word = /\w/;
  if (/^\s|^$/.test(near) || (mark[0] === "_" && word.test(text[at - 1] ?? ""))) return null;
  for (let length = near.indexOf(mark, 1); length > 0; length = near.indexOf(mark, length + 1)) {
    const after = near[length + mark.length] ?? "";
    const part = mark.length === 1 && (after === mark || near[length - 1] === mark);
    if (part || /\s/.test(near[length - 1]) || (mark[0] === "_" && word.test(after))) continue;
    const inner = inline(near.slice(0, length), depth + 1);
    const made = mark.length === 3 ? [element("em", {}, ...inner)] : inner;
    return { nodes: [element(mark.length === 1 ? "em" : "strong", {}, ...made)], end: begin + length + mark.length };
  }
  return null;
}

/** A link that shows where it leads; only its text for any address but http and https. */
function link(address, children) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return children;
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") return children;
  const made = element("a", { href: url.href, target: "_blank", rel: "noopener noreferrer", title: url.href }, ...children);
  return made.textContent === address ? [made] : [made, element("span", { className: "small" }, ` (${url.host})`)];
}
