/**
 * The service worker: keeps every file for later, so that the page works offline, and adds the headers under which
 * browsers give WebAssembly its threads. The export writes `FEWSTEP` before it: a version that changes with every file.
 */

interface Worker {
  FEWSTEP: { version: string; shell: string[] };
  registration: { scope: string };
  skipWaiting(): Promise<void>;
  clients: { claim(): Promise<void> };
  addEventListener(kind: "install" | "activate", run: (event: { waitUntil(work: Promise<unknown>): void }) => void): void;
  addEventListener(kind: "fetch", run: (event: { request: Request; respondWith(answer: Promise<Response>): void }) => void): void;
}

const worker = self as unknown as Worker;
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
  "X-Content-Type-Options": "nosniff",
  "Content-Security-Policy":
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
};

const { scope } = worker.registration;
const mine = `fewstep ${scope} `;
const kept = mine + worker.FEWSTEP.version;

async function install(): Promise<void> {
  await (await caches.open(kept)).addAll(worker.FEWSTEP.shell.map((file) => new Request(file, { cache: "reload" })));
  await worker.skipWaiting();
}

async function activate(): Promise<void> {
  const old = (await caches.keys()).filter((name) => name.startsWith(mine) && name !== kept);
  await Promise.all(old.map((name) => caches.delete(name)));
  await worker.clients.claim();
}

/** From what was kept, else from the server, and kept. */
async function answer(request: Request): Promise<Response> {
  const cache = await caches.open(kept);
  const found = await cache.match(request, { ignoreSearch: true });
  if (found) return withHeaders(found);
  const fresh = await fetch(request);
  if (fresh.status === 200) void cache.put(request, fresh.clone()).catch(() => undefined); // the disk may be full
  return withHeaders(fresh);
}

function withHeaders(response: Response): Response {
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}

worker.addEventListener("install", (event) => event.waitUntil(install()));
worker.addEventListener("activate", (event) => event.waitUntil(activate()));
worker.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method === "GET" && request.url.startsWith(scope)) event.respondWith(answer(request));
});
