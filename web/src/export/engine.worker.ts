/** The model, away from the page's own thread: loads it with ONNX Runtime Web, then paints what is asked. */

import { Tokenizer } from "@huggingface/tokenizers";
import type * as Ort from "onnxruntime-common";
import type { Manifest } from "../model/manifest";
import { type Graph, Painter, type Run } from "../model/painter";
import { widened } from "../model/weights";
import type { Asked, EngineKind, Said } from "./messages";

const GRAPHS: Graph[] = ["text_encoder", "text_kv", "unet", "decoder", "encoder"];
const ERRORS_ONLY = 3;

let painter: Painter | null = null;

self.onmessage = async ({ data }: MessageEvent<Asked>) => {
  try {
    if (data.kind === "load") await load(data.base, data.engine, data.threads);
    else await paint(data);
  } catch (error) {
    say({ kind: "failed", id: data.kind === "paint" ? data.id : null, why: error instanceof Error ? error.message : String(error) });
  }
};

function say(message: Said, moved: Transferable[] = []): void {
  self.postMessage(message, { transfer: moved });
}

async function paint({ id, order }: Extract<Asked, { kind: "paint" }>): Promise<void> {
  if (!painter) throw new Error("The model is not loaded yet.");
  const began = performance.now();
  const { pixels, steps } = await painter.paint(order);
  const ms = performance.now() - began;
  const own = new Uint8ClampedArray(pixels);
  say({ kind: "painted", id, pixels: own, steps, ms }, [own.buffer]);
}

async function load(base: string, engine: EngineKind, threads: number): Promise<void> {
  const at = (file: string) => new URL(file, base).href;
  const model = (await (await fetched(at("model.json"))).json()) as Manifest;
  const part = model.runtime[engine];
  const progress = new Progress(model.weights.bytes + part.bytes);
  const tokens = fetched(at(model.tokenizer.file)).then((answer) => answer.json());
  const [wasm, weights] = await Promise.all([progress.read(at(part.wasm)), progress.read(at(model.weights.file))]);
  const ort = (await import(/* @vite-ignore */ at(part.script))) as typeof Ort;
  Object.assign(ort.env.wasm, { numThreads: threads, wasmBinary: wasm, wasmPaths: { mjs: at(part.loader) } });
  const data = widened(new Uint16Array(weights.buffer));
  const sessions = await opened(ort, model, engine, new Uint8Array(data.buffer), at);
  const tokenizer = new Tokenizer(await tokens, {});
  painter = new Painter(model, (text) => tokenizer.encode(text, { add_special_tokens: false }).ids, runner(ort, sessions));
  say({ kind: "ready", engine, threads });
}

type Sessions = Record<Graph, Ort.InferenceSession>;

async function opened(ort: typeof Ort, model: Manifest, engine: EngineKind, weights: Uint8Array, at: (file: string) => string): Promise<Sessions> {
  const found: Partial<Sessions> = {};
  const side = model.size_px / model.cell_px;
  const options = {
    executionProviders: [engine],
    externalData: [{ path: "weights", data: weights }],
    freeDimensionOverrides: { B: 1, H: side, W: side }, // known sizes: a session is made in three quarters of the time
    enableMemPattern: false,
    logSeverityLevel: ERRORS_ONLY,
  } as const;
  for (const [done, graph] of GRAPHS.entries()) {
    say({ kind: "loading", what: "Opening the model", share: done / GRAPHS.length });
    const bytes = new Uint8Array(await (await fetched(at(model.graphs[graph]))).arrayBuffer());
    found[graph] = await ort.InferenceSession.create(bytes, options);
  }
  return found as Sessions;
}

function runner(ort: typeof Ort, sessions: Sessions): Run {
  return async (graph, inputs) => {
    const feeds = Object.entries(inputs).map(([name, { data, dims }]) => [
      name,
      data instanceof BigInt64Array ? new ort.Tensor("int64", data, dims) : new ort.Tensor("float32", data, dims),
    ]);
    const [output] = sessions[graph].outputNames;
    const answer = await sessions[graph].run(Object.fromEntries(feeds), [output as string]);
    const tensor = answer[output as string] as Ort.Tensor;
    return (await tensor.getData(true)) as Float32Array;
  };
}

async function fetched(address: string): Promise<Response> {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`'${new URL(address).pathname}' could not be loaded (${answer.status}). Put the whole folder on the server.`);
  return answer;
}

/** Bytes read of all large files together. */
class Progress {
  private done = 0;

  constructor(private total: number) {}

  async read(address: string): Promise<Uint8Array<ArrayBuffer>> {
    const answer = await fetched(address);
    const parts: Uint8Array[] = [];
    const reader = (answer.body as ReadableStream<Uint8Array>).getReader();
    for (let next = await reader.read(); !next.done; next = await reader.read()) {
      parts.push(next.value);
      this.done += next.value.length;
      say({ kind: "loading", what: "Loading the model", share: Math.min(1, this.done / this.total) });
    }
    return new Uint8Array(await new Blob(parts as BlobPart[]).arrayBuffer());
  }
}
