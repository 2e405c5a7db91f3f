/** The engine as the page sees it: started, asked, never asked twice at once; what is newest is painted next. */

import type { Order } from "../model/painter";
import type { Asked, EngineKind, Said } from "./messages";
import * as page from "./state";

const MOST_THREADS = 8;

/** The picture of the drawing that goes in, and where the picture goes that comes out. */
interface Ends {
  input: () => Uint8ClampedArray | null;
  output: (pixels: Uint8ClampedArray<ArrayBuffer>) => void;
}

export class Engine {
  private worker: Worker | null = null;
  private asked: { id: number; order: Order } | null = null;
  private again = false;
  private ids = 0;

  constructor(private ends: Ends) {}

  /** Loads the model anew with this engine. */
  start(kind: EngineKind): void {
    this.worker?.terminate();
    this.asked = null;
    page.engine.value = null;
    page.busy.value = false;
    page.loading.value = { what: "Loading the model", share: 0 };
    this.worker = new Worker(new URL("./engine.worker.ts", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }: MessageEvent<Said>) => this.heard(data, kind);
    this.worker.onerror = (event) => this.failed(event.message || "The engine could not be started.", kind);
    const threads = crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1) : 1;
    this.send({ kind: "load", base: document.baseURI, engine: kind, threads });
  }

  /** Paints what the page says now, as soon as the picture in the making is done. */
  ask(): void {
    if (!page.engine.value) return;
    if (this.asked) {
      this.again = true;
      return;
    }
    this.again = false;
    this.ids += 1;
    this.asked = { id: this.ids, order: { ...page.words.value, image: this.ends.input() } };
    page.busy.value = true;
    this.send({ kind: "paint", ...this.asked });
  }

  private send(message: Asked): void {
    this.worker?.postMessage(message);
  }

  private heard(said: Said, kind: EngineKind): void {
    if (said.kind === "loading") page.loading.value = said;
    else if (said.kind === "failed") this.failed(said.why, kind);
    else if (said.kind === "ready") {
      page.loading.value = null;
      page.engine.value = { kind: said.engine, threads: said.threads };
      this.ask();
    } else this.painted(said);
  }

  private painted({ id, pixels, steps, ms }: Extract<Said, { kind: "painted" }>): void {
    if (this.asked?.id !== id) return;
    const { image, ...words } = this.asked.order;
    this.ends.output(pixels);
    page.shown.value = { ms, steps, words, drawn: image !== null };
    this.next();
  }

  private next(): void {
    this.asked = null;
    page.busy.value = false;
    if (this.again) this.ask();
  }

  /** WebGPU gives way to WebAssembly, which every browser has; other faults are said. */
  private failed(why: string, kind: EngineKind): void {
    if (kind === "webgpu") {
      page.notice.value = `WebGPU cannot run this model here (${why.slice(0, 160)}): WebAssembly goes on.`;
      page.wanted.value = "wasm";
      return this.start("wasm");
    }
    page.notice.value = why;
    if (page.engine.value) this.next();
    else page.loading.value = { what: "The model could not be loaded", share: 0 };
  }
}
