// Calls of the service. What records something carries an id of its own, so that it can be sent
// again when no answer came: the service records it once.

const PAUSE = 1000; // milliseconds between two tries
const TRY_AGAIN = new Set([429, 502, 503, 504]);

export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export function newRequest() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Sends a request till it is answered; `waits` is called before each further try.
export async function call(path, { body, key, waits = () => {} } = {}) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const method = body === undefined ? "GET" : "POST";
  for (;;) {
    let pause = PAUSE;
    try {
      const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
      if (answer.ok) return answer;
      if (!TRY_AGAIN.has(answer.status)) throw new Refused(answer.status, await reason(answer));
      pause = Math.min(10, Number(answer.headers.get("Retry-After")) || 1) * 1000;
    } catch (error) {
      if (error instanceof Refused) throw error;
    }
    waits();
    await new Promise((resume) => setTimeout(resume, pause));
  }
}

async function reason(answer) {
  const text = await answer.text();
  try {
    const { detail } = JSON.parse(text);
    return typeof detail === "string" ? detail : JSON.stringify(detail);
  } catch {
    return text.slice(0, 300) || String(answer.status);
  }
}
