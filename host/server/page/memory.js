// Draws memory against the tokens of a conversation.

import { element, shape } from "./dom.js";

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [300, 150, 58, 10, 8, 24];

export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const unit = number > 0 ? Math.min(Math.floor(Math.log2(number) / 10), 4) : 0;
  const value = number / 1024 ** unit;
  return `${value >= 100 || unit === 0 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1)} ${units[unit]}`;
}

/** Bytes that keys and values of 16 bits take for each token. */
export const attentionBytes = (props) => 2 * props.n_layer * props.d_model * 2;

/** A round number that is not below `number`, of base `base`. */
function ceiling(number, base) {
  const power = base ** Math.floor(Math.log(number) / Math.log(base));
  const steps = base === 10 ? [1, 1.5, 2, 3, 4, 5, 6, 8, 10] : [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];
  return power * steps.find((step) => power * step >= number * 0.999);
}

/** Draws lines of [tokens, bytes] points; each has a class that says how it looks. */
function chart(svg, tokens, lines, label) {
  const right = ceiling(Math.max(tokens, 100, ...lines.flatMap((line) => line.points.map(([x]) => x))), 10);
  const top = ceiling(Math.max(...lines.flatMap((line) => line.points.map(([, y]) => y)), 1024), 1024);
  const x = (value) => LEFT + (value / right) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - TOP - BOTTOM);
  const made = [];
  for (const part of [0, 0.5, 1]) {
    made.push(shape("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(top * part), y2: y(top * part) }));
    made.push(shape("text", { x: LEFT - 6, y: y(top * part) + 4, "text-anchor": "end" }, bytes(top * part)));
  }
  made.push(shape("text", { x: LEFT, y: HEIGHT - 6 }, "0"));
  made.push(shape("text", { x: WIDTH - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, `${right.toLocaleString("en")} tokens`));
  for (const { points, className } of lines) {
    if (!points.length) continue;
    made.push(shape("polyline", { class: className, points: points.map(([tokens, value]) => `${x(tokens)},${y(value)}`).join(" ") }));
    const [lastX, lastY] = points.at(-1);
    made.push(shape("circle", { class: className, cx: x(lastX), cy: y(lastY), r: 3 }));
  }
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("aria-label", label);
  svg.replaceChildren(...made);
}

/** Draws everything: `samples` are [tokens, bytes of the server, bytes of the state] along the conversation of `tokens`. */
export function draw(ui, props, tokens, samples) {
  const each = attentionBytes(props);
  const states = samples.map(([at, , state]) => [at, state]);
  const state = [[0, states[0]?.[1] ?? props.state_bytes], ...states, [Math.max(tokens, states.at(-1)?.[0] ?? 0), props.state_bytes]];
  const cache = [[0, 0], [tokens, tokens * each]];
  const times = (tokens * each) / props.state_bytes;
  chart(ui.stateChart, tokens, [{ points: cache, className: "other" }, { points: state, className: "own" }],
    `After ${tokens} tokens the state takes ${bytes(props.state_bytes)}; an attention cache would take ${bytes(tokens * each)}.`);
  const server = samples.filter(([, resident]) => resident > 0).map(([at, resident]) => [at, resident]);
  ui.serverChart.parentElement.hidden = !server.length;
  chart(ui.serverChart, tokens, [{ points: server, className: "own" }], `The server takes ${bytes(props.resident_bytes ?? 0)} after ${tokens} tokens.`);
  const figure = (name, value) => [element("dt", {}, name), element("dd", {}, value)];
  ui.figures.replaceChildren(
    ...figure("Conversation", `${tokens.toLocaleString("en")} tokens`),
    ...figure("State", bytes(props.state_bytes)),
    ...figure("Attention cache", bytes(tokens * each) + (times >= 1.5 ? ` (${times < 10 ? times.toFixed(1) : Math.round(times)} times the state)` : "")),
    ...(props.resident_bytes ? figure("Server", bytes(props.resident_bytes)) : []),
    ...figure("Cached prompts", `${bytes(props.cache.bytes)} of at most ${bytes(props.cache.budget)}`),
  );
  ui.formula.textContent = `The state has the same size after any number of tokens. The attention cache is computed, not measured: 2 × ${props.n_layer} layers × `
    + `${props.d_model} × 2 bytes = ${bytes(each)} for each token, for keys and values of 16 bits. The server keeps the states of earlier prompts to go on from them; they are part of its memory.`;
}
