// The server's events over fetch, which can send a body and a key where EventSource cannot.

export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function headers(key) {
  return key
    ? { "Content-Type": "application/json", Authorization: `Bearer ${key}` }
    : { "Content-Type": "application/json" };
}

async function check(response) {
  if (response.ok) return response;
  const content = await response.json().catch(() => null);
  const message = content?.error?.message ?? `the server answered ${response.status}`;
  throw new ServerError(response.status, message);
}

export async function getJson(path, key) {
  const response = await check(await fetch(path, { headers: headers(key) }));
  return response.json();
}

export async function post(path, body, key, signal) {
  const request = { method: "POST", headers: headers(key), body: JSON.stringify(body), signal };
  return check(await fetch(path, request));
}

// Yields {name, content} for every event of a response of type text/event-stream.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      let name = "message";
      let data = "";
      for (const line of part.split("\n")) {
        if (line.startsWith("event: ")) name = line.slice(7);
        if (line.startsWith("data: ")) data += line.slice(6);
      }
      if (data) yield { name, content: JSON.parse(data) };
    }
  }
}
