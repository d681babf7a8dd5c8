// Requests to the server that this page comes from. Paths are relative: a proxy may serve the page below a path of its own.

/** Why a request failed. `kind` is key, busy, loading, network or refused. */
export class Failure extends Error {
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

/** What an answer that is not OK says. */
async function failure(response, key) {
  let said = "";
  try {
    said = (await response.json()).error.message;
  } catch {
    // A proxy answers with a page of its own.
  }
  const told = said || `the server answered with status ${response.status}`;
  const sentence = told[0].toUpperCase() + told.slice(1).replace(/\.$/, "");
  switch (response.status) {
    case 401: return new Failure("key", key ? "This server does not accept the API key." : "This server needs an API key.");
    case 403: return new Failure("refused", `${sentence}. Start it with --origin ${location.origin}`);
    case 429: return new Failure("busy", "The server is busy: too many requests are waiting. Try again in a moment.");
    case 502:
    case 503:
    case 504: return new Failure("loading", `${sentence}.`);
    default: return new Failure("refused", `${sentence}.`);
  }
}

async function request(path, key, init = {}) {
  const headers = { ...init.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...init, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("network", "The server can't be reached. Is it running?");
  }
  if (!response.ok) throw await failure(response, key);
  return response;
}

export async function models(key) {
  return (await (await request("v1/models", key)).json()).data.map((model) => model.id);
}

export async function props(key, model) {
  return (await request(`props?model=${encodeURIComponent(model)}`, key)).json();
}

/** The parts of a streamed answer, as the server sends them. */
export async function* chat(body, key, signal) {
  const init = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
  const response = await request("v1/chat/completions", key, init);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      read = { done: true };
    }
    if (read.done) throw new Failure("network", "The connection ended before the answer did.");
    const events = (rest + read.value).split(/\r?\n\r?\n/);
    rest = events.pop();
    for (const event of events) {
      // Lines that begin with a colon only keep the connection alive.
      const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const part = JSON.parse(data);
      if (part.error) throw new Failure("refused", part.error.message);
      yield part;
    }
  }
}
